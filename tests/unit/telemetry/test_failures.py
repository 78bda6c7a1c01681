"""Telemetry that breaks: the application gets its bytes, the log has it once."""

import logging
from typing import Any

import pytest
from helpers.asgi import START, Fed, Stream
from helpers.backend import Backend
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import NoOpTracerProvider

from otel_sse import SSEMiddleware, semconv
from otel_sse.telemetry.log_events import LogEvents
from otel_sse.telemetry.telemetry import Telemetry

CHUNKS = [b"data: %d\n\n" % number for number in range(50)]


async def streams(mw: SSEMiddleware, fed: Fed, count: int = 3) -> None:
    """Runs some streams, and asserts that the application's bytes went out whole."""
    for _ in range(count):
        stream = Stream(mw)
        fed.end(*CHUNKS, None)
        await stream.task
        assert stream.body == b"".join(CHUNKS)


class _Raises:
    """Raises from every method but those allowed."""

    def __init__(self, *allowed: str) -> None:
        self._allowed = allowed

    def __getattr__(self, name: str) -> Any:
        if name in (*self._allowed, "force_flush"):
            return lambda *_, **__: _Raises(*self._allowed)

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"broken: {name}")

        return fail


class _BadProcessor(SpanProcessor):
    def __init__(self, *, start: bool, end: bool) -> None:
        self._start, self._end = start, end

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._start:
            raise RuntimeError("broken: on_start")

    def on_end(self, span: Any) -> None:
        if self._end:
            raise RuntimeError("broken: on_end")


@pytest.mark.parametrize(("start", "end"), [(True, False), (False, True), (True, True)])
async def test_a_span_processor_that_raises(
    start: bool, end: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once; metrics and log events are still recorded."""
    backend = Backend()
    backend.tracer_provider.add_span_processor(_BadProcessor(start=start, end=end))
    fed = Fed()
    with caplog.at_level(logging.WARNING, "otel_sse"):
        await streams(SSEMiddleware(fed, **backend.providers), fed)
    assert 1 <= len(caplog.records) <= int(start) + int(end)
    assert backend.value("sse.server.messages") == 150
    assert len(backend.events("sse.connection.closed")) == 3
    assert backend.value("sse.server.active_connections") == 0


async def test_a_histogram_that_raises_is_switched_off(
    backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first failure is logged and the last: that instrument is not called again."""
    calls: list[str] = []
    fed = Fed()
    mw = SSEMiddleware(fed, **backend.providers)

    def fail(*_: Any, **__: Any) -> None:
        calls.append("record")
        raise RuntimeError("broken")

    histograms = mw.telemetry.histograms._record
    for name in histograms:
        monkeypatch.setitem(histograms, name, fail)
    with caplog.at_level(logging.WARNING, "otel_sse"):
        await streams(mw, fed)
    assert len(calls) == 5
    assert len(caplog.records) == 5
    assert backend.value("sse.server.messages") == 150


async def test_a_meter_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Without any instrument spans and events are still recorded; the log names what is missing."""
    backend = Backend()
    fed = Fed()
    with caplog.at_level(logging.WARNING, "otel_sse"):
        broken = _Raises("get_meter")
        mw = SSEMiddleware(fed, **{**backend.providers, "meter_provider": broken})
        logged = len(caplog.records)
        names = {each.name for each in vars(semconv).values() if isinstance(each, semconv.Metric)}
        missing = {name for name in names if name in caplog.text}
        assert {name for name in names if ".server." in name} <= missing
        await streams(mw, fed)
    assert len(caplog.records) == logged
    assert len(backend.spans("SSE")) == 3


@pytest.mark.parametrize("which", ["tracer_provider", "logger_provider"])
async def test_a_tracer_or_logger_that_raises(which: str, caplog: pytest.LogCaptureFixture) -> None:
    """Metrics go on, and the log is short."""
    backend = Backend()
    fed = Fed()
    broken = _Raises("get_tracer", "get_logger")
    with caplog.at_level(logging.WARNING, "otel_sse"):
        mw = SSEMiddleware(fed, **{**backend.providers, which: broken})
        await streams(mw, fed)
    assert 1 <= len(caplog.records) <= 2
    assert backend.value("sse.server.messages") == 150


async def test_an_exporter_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """The application does not notice; the other signals are whole."""

    class Bad(SpanExporter):
        def export(self, spans: Any) -> Any:
            raise RuntimeError("broken exporter")

    backend = Backend()
    backend.tracer_provider.add_span_processor(SimpleSpanProcessor(Bad()))
    fed = Fed()
    await streams(SSEMiddleware(fed, **backend.providers), fed)
    assert len(backend.spans("SSE")) == 3


async def test_providers_that_are_shut_down_early() -> None:
    """After a shutdown streams are served as before."""
    backend = Backend()
    fed = Fed()
    mw = SSEMiddleware(fed, **backend.providers)
    await streams(mw, fed, 1)
    backend.tracer_provider.shutdown()
    backend.logger_provider.shutdown()
    backend.meter_provider.shutdown()
    await streams(mw, fed)


async def test_no_op_providers() -> None:
    """Without an SDK nothing is reported and nothing fails."""
    fed = Fed()
    mw = SSEMiddleware(
        fed, meter_provider=NoOpMeterProvider(), tracer_provider=NoOpTracerProvider()
    )
    await streams(mw, fed)


async def test_a_bug_of_ours_costs_the_telemetry_alone(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where our own code raises, the application's stream is whole and the log has it
    once for each kind of place.
    """
    fed = Fed()
    mw = SSEMiddleware(fed, **backend.providers)

    def bug(*_: Any, **__: Any) -> Any:
        raise KeyError("a bug")

    with caplog.at_level(logging.WARNING, "otel_sse"):
        for kind, name in (
            (Telemetry, "record_message"),
            (Telemetry, "record"),
            (Telemetry, "record_close"),
            (LogEvents, "opened"),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(kind, name, bug)
                await streams(mw, fed)
    assert 1 <= len(caplog.records) <= 4
    await streams(mw, fed, 1)
    assert backend.value("sse.server.active_connections") == 0


async def _error_type_of(error: Exception, backend: Backend) -> Any:
    """The ``error.type`` of the one stream in which the application raises ``error``."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        raise error

    stream = Stream(SSEMiddleware(app, **backend.providers))
    with pytest.raises(type(error)) as raised:
        await stream.task
    assert raised.value is error
    (span,) = backend.spans("SSE")
    return span.attributes["error.type"]


async def test_causes_that_go_round_in_a_circle(backend: Backend) -> None:
    """An error may be the cause of its own cause: the close is reported, and takes no time."""
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    assert await _error_type_of(first, backend) == "ValueError"


@pytest.mark.parametrize("inner", [None, 1, "text", lambda: ()])
async def test_an_error_that_has_the_name_of_a_groups_errors(inner: Any, backend: Backend) -> None:
    """It is no group: its own class is reported."""
    error = ValueError("alone")
    error.exceptions = inner  # type: ignore[attr-defined]
    assert await _error_type_of(error, backend) == "ValueError"
    assert backend.value("sse.server.connection.duration", sse__close__reason="error") == 1


async def test_one_meter_provider_may_serve_two_sets_of_other_providers() -> None:
    """The first tracer provider of a meter provider is kept: one set of instruments, one owner."""
    meter = MeterProvider(shutdown_on_exit=False)
    first, second = TracerProvider(shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
    one = SSEMiddleware(Fed(), meter_provider=meter, tracer_provider=first)
    two = SSEMiddleware(Fed(), meter_provider=meter, tracer_provider=second)
    assert one.telemetry is two.telemetry
    assert two.telemetry.providers.tracer is first
