"""Streams and callbacks that the garbage collector finds."""

import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.waiting import wait_until

from otel_sse.process import gc_safety


def test_garbage_is_reported_though_a_thread_could_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system had no thread for the first: it is reported with those that come later."""
    called: list[int] = []

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(gc_safety, "start_new_thread", refuse)
        assert not gc_safety.start_raw_thread(called.append, -1)
        gc_safety.defer(partial(called.append, 0))
    for number in range(1, 100):
        gc_safety.defer(partial(called.append, number))
    wait_until(lambda: len(called) == 100)
    assert sorted(called) == [*range(100)]


@pytest.mark.parametrize("error", [ValueError("broken"), IndexError("broken")], ids=repr)
def test_a_callback_that_raises_costs_no_other(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does the exit hook that runs them, which has all else to export: it is logged."""
    called: list[int] = []

    def fail() -> None:
        raise error

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(gc_safety, "start_new_thread", refuse)
        gc_safety.defer(fail)
        gc_safety.defer(partial(called.append, 1))
    gc_safety.run_deferred()
    assert called == [1]
    assert "broken" in caplog.text


# A stream whose loop has gone away is freed by the garbage collector, wherever that may run: here
# in the middle of a collection of metrics, at many a point of it.
_ABANDONED = """
    import asyncio, gc, time
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    import otel_sse

    SSE = [(b"content-type", b"text/event-stream")]

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        await send({"type": "http.response.body", "body": b"data: x\\n\\n", "more_body": True})
        if scope["path"] == "/live":
            await receive()

    reader = InMemoryMetricReader()
    middleware = otel_sse.SSEMiddleware(
        app,
        meter_provider=MeterProvider([reader], shutdown_on_exit=False),
        tracer_provider=TracerProvider(shutdown_on_exit=False),
    )

    async def never():
        await asyncio.Event().wait()

    async def nowhere(message):
        pass

    def scope(path, route):
        http = {"type": "http", "method": "GET", "path": path, "headers": []}
        return {**http, "path_template": route}

    async def routes():
        for number in range(150):
            await middleware(scope("/", f"/{number}"), never, nowhere)

    asyncio.run(routes())

    def abandon():
        loop = asyncio.new_event_loop()

        async def start():
            task = asyncio.ensure_future(middleware(scope("/live", "/live"), never, nowhere))
            await asyncio.sleep(0)
            return task

        task = loop.run_until_complete(start())
        task._log_destroy_pending = False
        loop.close()

    ordinary = gc.get_threshold()
    for threshold in range(100, 3000, 100):
        gc.collect()
        gc.disable()
        abandon()
        gc.set_threshold(threshold, *ordinary[1:])
        gc.enable()
        reader.get_metrics_data()
        gc.set_threshold(*ordinary)
    gc.collect()
    deadline = time.monotonic() + 20
    while otel_sse.connections() and time.monotonic() < deadline:
        time.sleep(0.01)
    reasons = {}
    for resource in reader.get_metrics_data().resource_metrics:
        for metric in resource.scope_metrics[0].metrics:
            if metric.name == "sse.server.connection.duration":
                for point in metric.data.data_points:
                    if point.attributes["http.route"] == "/live":
                        reasons[point.attributes["sse.close.reason"]] = point.count
    print(len(otel_sse.connections()), reasons)
"""


def _run(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_stream_that_the_garbage_collector_ends_locks_nothing(tmp_path: Path) -> None:
    """A stream that is never run to its end is reported as ``unknown``, without a deadlock and
    without a line on the application's standard error.
    """
    process = _run(_ABANDONED, tmp_path)
    assert process.stderr == ""
    assert process.stdout == "0 {'unknown': 29}\n"


# The same of a response that a WSGI server, or a test client, has not closed: a cycle holds it.
_UNCLOSED = """
    import gc, time
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    import otel_sse

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return iter([b"data: x\\n\\n"] * 3)

    reader = InMemoryMetricReader()
    application = otel_sse.SSEWSGIMiddleware(
        app,
        meter_provider=MeterProvider([reader], shutdown_on_exit=False),
        tracer_provider=TracerProvider(shutdown_on_exit=False),
    )

    def give_up():
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        body = application(environ, lambda status, headers, *_: None)
        next(iter(body))
        environ["body"] = body
        held = [environ]
        held.append(held)

    ordinary = gc.get_threshold()
    for threshold in [*range(1, 60), *range(60, 600, 20)]:
        gc.collect()
        gc.disable()
        give_up()
        gc.set_threshold(threshold, *ordinary[1:])
        gc.enable()
        reader.get_metrics_data()
        gc.set_threshold(*ordinary)
    gc.collect()
    deadline = time.monotonic() + 20
    reasons = {}
    # A close in another thread records its duration last.
    while sum(reasons.values()) < 86 and time.monotonic() < deadline:
        for resource in reader.get_metrics_data().resource_metrics:
            for metric in resource.scope_metrics[0].metrics:
                if metric.name == "sse.server.connection.duration":
                    for point in metric.data.data_points:
                        reasons[point.attributes["sse.close.reason"]] = point.count
        time.sleep(0.01)
    print(len(otel_sse.connections()), reasons)
"""


def test_a_response_that_was_never_closed_locks_nothing(tmp_path: Path) -> None:
    """A WSGI response that the collector frees, within a collection of metrics too, is reported as
    ``client_disconnect``, without a deadlock.
    """
    process = _run(_UNCLOSED, tmp_path)
    assert process.stderr == ""
    assert process.stdout == "0 {'client_disconnect': 86}\n"
