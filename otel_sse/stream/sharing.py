"""The telemetry of this process: which instrumentors share one, and how streams open on it."""

from __future__ import annotations

import threading
import weakref
from typing import Any, Final

from opentelemetry import metrics
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from otel_sse.config import keep_first_config, load
from otel_sse.process import gc_safety
from otel_sse.process.fork import run_in_forked_child
from otel_sse.process.shutdown import ShutdownHandler
from otel_sse.semconv import SERVER, Role
from otel_sse.stream.client import ClientStream, Errors
from otel_sse.stream.info import ClientStreamInfo, ServerStreamInfo
from otel_sse.stream.request import RequestState
from otel_sse.stream.server import ServerStream, ThreadedServerStream
from otel_sse.telemetry.providers import Providers
from otel_sse.telemetry.telemetry import Telemetry

_lock = threading.Lock()
# By meter provider (None is the global one, whether it has been set yet or not) and role.
_telemetries: dict[tuple[Any, Role], Telemetry] = {}


def acquire_telemetry(
    instrumentor: object, providers: Providers, options: dict[str, Any], role: Role = SERVER
) -> Telemetry:
    """The telemetry of ``providers``, made at the first call; ``release_telemetry`` returns it.

    Raises:
        ValueError: an option has a bad value; see ``config.load``.
        TypeError: there is no such option.

    """
    config = load(options)
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


def open_client_stream(
    telemetry: Telemetry,
    owner: Any,
    info: ClientStreamInfo,
    disconnect_errors: Errors,
    timeouts: Errors,
) -> ClientStream | None:
    """Starts to record a stream whose response headers have come.

    Args:
        telemetry: what it is recorded with.
        owner: if it is garbage-collected, the stream counts as closed by the reader.
        info: what is known of the stream.
        disconnect_errors: as ``ClientStream`` takes them.
        timeouts: likewise.

    Returns:
        None where the URL is excluded, or the application suppresses instrumentation.

    """
    url = f"{info.scheme}://{info.host}{info.known_path}"
    if telemetry.config.excludes(url) or not is_instrumentation_enabled():
        return None
    shutdown_handler.prepare(serves=False)
    stream = ClientStream(telemetry, info, disconnect_errors, timeouts)
    weakref.finalize(owner, stream.close).atexit = False
    return stream


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
