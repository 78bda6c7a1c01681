"""Another event loop than asyncio's: streams that trio serves are reported in full."""

import asyncio
import contextlib
import http.client
import signal

from helpers.otlp import Receiver
from helpers.processes import Served, serve

HYPERCORN = "hypercorn trio_app:app -b 127.0.0.1:{port} -k trio --graceful-timeout 1"
SOON = {
    "OTEL_METRIC_EXPORT_INTERVAL": "200",
    "OTEL_BSP_SCHEDULE_DELAY": "50",
    "OTEL_BLRP_SCHEDULE_DELAY": "50",
    "OTEL_PYTHON_SSE_SEGMENT_SECONDS": "1",
    "OTEL_PYTHON_SSE_STALL_SECONDS": "1",
}


def _read(served: Served, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        try:
            return connection.getresponse().read()
        except http.client.IncompleteRead as broken:
            return broken.partial


def _reasons(receiver: Receiver) -> dict[str, tuple[str, int]]:
    """Each stream's close reason and messages."""
    return {
        record.attributes["url.path"]: (
            record.attributes["sse.close.reason"],
            record.attributes["sse.messages"],
        )
        for record in receiver.records("sse.connection.closed")
    }


async def test_every_close_has_its_reason(receiver: Receiver) -> None:
    """Also the close that the server announces as a disconnect while the last body is sent, and a
    time-out of trio's; and what is live at SIGTERM is reported before the process ends.
    """
    with serve(HYPERCORN, receiver) as served:
        await served.started()
        for path in ("/completed", "/raises", "/too-slow"):
            assert b"data: 1\n\n" in await asyncio.to_thread(_read, served, path)
        client = await served.open("/silent")
        status, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
        client.writer.transport.abort()
    assert status == 0, output
    assert _reasons(receiver) == {
        "/completed": ("completed", 3),
        "/raises": ("error", 1),
        "/too-slow": ("timeout", 1),
        "/silent": ("server_shutdown", 1),
    }
    assert len(receiver.spans("SSE")) == 4
    assert receiver.value("sse.server.messages") == 6
    assert receiver.value("sse.server.active_connections") == 0


async def test_an_idle_stream_is_reported_while_it_lasts(receiver: Receiver) -> None:
    """Trio's loop runs what a collection finds due: old segments and stalls."""
    with serve(HYPERCORN, receiver, **SOON) as served:
        await served.started()
        client = await served.open("/silent")
        await asyncio.to_thread(receiver.wait_for, lambda: len(receiver.spans("SSE")) >= 2)
        await asyncio.to_thread(
            receiver.wait_for, lambda: receiver.records("sse.connection.stalled")
        )
        await client.close()
        await asyncio.to_thread(
            receiver.wait_for, lambda: receiver.records("sse.connection.closed")
        )
    assert _reasons(receiver) == {"/silent": ("client_disconnect", 1)}
    indexes = [span.attributes["sse.segment.index"] for span in receiver.spans("SSE")]
    assert indexes[:2] == [0, 1]
    assert len(receiver.records("sse.connection.stalled")) == 1
