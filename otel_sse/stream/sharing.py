"""The telemetry of this process: which instrumentors share one, and how streams open on it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from time import perf_counter
from typing import Any, Final

from opentelemetry import metrics
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import SpanKind, get_current_span

from otel_sse import semconv
from otel_sse.config import Config, keep_first_config
from otel_sse.process import gc_safety
from otel_sse.process.fork import run_in_forked_child
from otel_sse.process.shutdown import ShutdownHandler
from otel_sse.semconv import SERVER, Role
from otel_sse.stream.client import ClientStream, Errors
from otel_sse.stream.close_reason import root_cause
from otel_sse.stream.info import ClientStreamInfo, ServerStreamInfo
from otel_sse.stream.nested import DeferredStream, ObservedStream, active_transport_call
from otel_sse.stream.request import Request, RequestState, current_request
from otel_sse.stream.server import ServerStream, ThreadedServerStream
from otel_sse.telemetry.providers import Providers
from otel_sse.telemetry.telemetry import Telemetry

_lock = threading.Lock()
# By meter provider (None is the global one, whether it has been set yet or not) and role.
_telemetries: dict[tuple[Any, Role], Telemetry] = {}


def acquire_telemetry(
    instrumentor: object, providers: Providers, config: Config, role: Role = SERVER
) -> Telemetry:
    """The telemetry of ``providers``, made at the first call; ``release_telemetry`` returns it."""
    meter = providers.meter
    key = None if meter is None or meter is metrics.get_meter_provider() else meter
    with _lock:
        for (other, _), each in _telemetries.items():
            if other is key and each.instrumentors:
                # The first one's configuration applies to all that share a meter provider.
                config = keep_first_config(each.config, config)
                break
        telemetry = _telemetries.get((key, role))
        if telemetry is None:
            telemetry = _telemetries[key, role] = Telemetry(config, providers, role)
        telemetry.add_user(instrumentor, config)
        shutdown_handler.install()
        gc_safety.install()
    return telemetry


def release_telemetry(instrumentor: object, telemetry: Telemetry) -> None:
    """Ends the use by ``instrumentor``. Live streams are still recorded until they close."""
    with _lock:
        telemetry.release(instrumentor)
        if not any(each.instrumentors for each in _telemetries.values()):
            shutdown_handler.uninstall()


def open_server_stream(
    telemetry: Telemetry,
    info: ServerStreamInfo,
    request: RequestState,
    *,
    threaded: bool = False,
) -> ServerStream | None:
    """Starts to record a stream whose response has started.

    Args:
        telemetry: what it is recorded with.
        info: what is known of the stream.
        request: the request that it answers.
        threaded: it is served in a thread, not by an event loop.

    Returns:
        None where the application suppresses instrumentation.

    """
    if not is_instrumentation_enabled():
        return None
    shutdown_handler.prepare()
    kind = ThreadedServerStream if threaded else ServerStream
    return kind(telemetry, info, request)


def open_handler_stream(
    telemetry: Telemetry, info: ServerStreamInfo, request: Request
) -> ServerStream | None:
    """The same for a handler that another task may send for, as a broadcast does for many: that
    task's context is not the stream's.
    """
    if current_request.get() is not request:
        return copy_context().run(open_server_stream, telemetry, info, request.state)
    if getattr(get_current_span(), "kind", None) is SpanKind.SERVER:
        # Of another instrumentation that has no place to show it before.
        request.enter_middleware()
    return open_server_stream(telemetry, info, request.state)


def open_client_stream(
    telemetry: Telemetry,
    owner: Any,
    info: ClientStreamInfo,
    disconnect_errors: Errors,
    timeouts: Errors,
) -> ObservedStream | None:
    """Starts to record a stream whose response headers have come.

    Args:
        telemetry: what it is recorded with.
        owner: if it is garbage-collected, the stream counts as closed by the reader.
        info: what is known of the stream.
        disconnect_errors: as ``ClientStream`` takes them.
        timeouts: likewise.

    Returns:
        None where the URL is excluded, the application suppresses instrumentation, or the stream
        is a part of another one; see ``stream.nested``.

    """
    if not _records(telemetry, info):
        return None
    call = active_transport_call()
    stream: ObservedStream
    if call is None:
        stream = _open(telemetry, info, disconnect_errors, timeouts)
    elif call.sending:
        known = info._replace(connected=perf_counter())
        stream = DeferredStream(
            call, partial(_open_later, telemetry, known, disconnect_errors, timeouts)
        )
    else:
        return None
    weakref.finalize(owner, stream.on_owner_freed).atexit = False
    return stream


def _open_later(
    telemetry: Telemetry, info: ClientStreamInfo, disconnect_errors: Errors, timeouts: Errors
) -> ClientStream | None:
    try:
        return _open(telemetry, info, disconnect_errors, timeouts)
    except Exception:
        telemetry.failures.log_failure_once("a stream's start")
        return None


def record_failed_connect(
    telemetry: Telemetry,
    known: Callable[[], ClientStreamInfo],
    error: BaseException | None = None,
) -> None:
    """Records a request that asked for an event stream and got none, if this is one. Never raises.

    Args:
        telemetry: what it is recorded with.
        known: what is known of the request; ``status`` is 0 where there was no response. Nothing is
            connected to where the URL names no host, or is none, which is a ``ValueError``.
        error: what was raised in place of a response; None: the status is the error.

    """
    try:
        try:
            info = known()
        except ValueError:
            return
        asked = info.host and semconv.MEDIA_TYPE in info.accept.lower()
        if not asked or active_transport_call() is not None or not _records(telemetry, info):
            return
        if error is None:
            if not info.failed:
                return
            error_type = str(info.status)
        else:
            error_type = telemetry.error_types.name_of(root_cause(error))
        attributes = {**info.attributes(telemetry), semconv.ERROR_TYPE: error_type}
        duration = perf_counter() - info.started
        telemetry.histograms.record(semconv.CONNECT_DURATION, duration, attributes, info.context)
    except Exception:
        telemetry.failures.log_failure_once("a failed connect")


def _records(telemetry: Telemetry, info: ClientStreamInfo) -> bool:
    url = f"{info.scheme}://{info.host}{info.known_path}"
    return not telemetry.config.excludes(url) and is_instrumentation_enabled()


def _open(
    telemetry: Telemetry, info: ClientStreamInfo, disconnect_errors: Errors, timeouts: Errors
) -> ClientStream:
    shutdown_handler.prepare(serves=False)
    return ClientStream(telemetry, info, disconnect_errors, timeouts)


def all_telemetry() -> list[Telemetry]:
    return list(_telemetries.values())


def _reset_in_forked_child() -> None:
    global _lock
    _lock = threading.Lock()
    for telemetry in all_telemetry():
        telemetry.reset()
    shutdown_handler.reset()


shutdown_handler: Final = ShutdownHandler(all_telemetry)
run_in_forked_child(_reset_in_forked_child)
