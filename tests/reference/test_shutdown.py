"""SIGTERM with live streams, under opentelemetry-instrument, exported to a real receiver."""

import asyncio
import signal
import time

from helpers.otlp import Receiver
from helpers.raw_client import RawClient
from helpers.waiting import until
from reference.served import Worker, visiting


async def test_a_stop_is_in_order_and_exported() -> None:
    """The readiness check answers 503 first; every stream ends with a new `retry` and is reported
    as ended by the server's shutdown, as is what the server itself counts, and the exit status
    is 0.
    """
    with Receiver() as receiver:
        otel = {
            **receiver.environment,
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "httpx,requests,aiohttp-client",
        }
        with Worker(otel=otel, retry_seconds=1, drain_seconds=0.5) as worker:
            async with visiting(worker.url) as site:
                clients = [await RawClient.get(site.port, "/events") for _ in range(3)]
                for client in clients:
                    await client.until(b"id: ")
                await site.publish("x" * 5000)
                for client in clients:
                    await client.until(b'"encoding": "gzip"')
                began = time.monotonic()
                worker.process.send_signal(signal.SIGTERM)
                seen: set[int] = set()
                while 503 not in seen:
                    seen.add(await site.status_of("/readyz"))
                    assert time.monotonic() - began < 10
                for client in clients:
                    rest = await asyncio.wait_for(client.until(b"\r\n0\r\n\r\n"), 10)
                    assert b"retry: " in rest
                    await client.close()
                await until(lambda: worker.process.poll() is not None, 20)
            assert worker.process.returncode == 0, worker.log
        closed = receiver.records("sse.connection.closed")
        assert [each.attributes["sse.close.reason"] for each in closed] == ["server_shutdown"] * 3
        assert len(receiver.spans("SSE /events")) == 3
        assert receiver.value("sse.server.active_connections") == 0
        assert receiver.value("server.compression.original") == 5000
        assert 0 < receiver.value("server.compression.compressed") < 500
