"""What is known of servers and frameworks beyond their public interfaces, in one place.

Each function here relies on something that its owner does not document or may change. ``FACTS``
lists them: what is relied on, the versions that it was checked with, and the test that fails
where it no longer holds. Where a fact does not hold, the function returns what means "not known".
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, Final, NamedTuple

from opentelemetry.trace import SpanKind

from otel_sse.process.backlog import Transport


class Fact(NamedTuple):
    """``versions`` are those that it was checked with; ``test`` is the test that would notice."""

    owner: str
    fact: str
    versions: str
    test: str


FACTS: Final = (
    Fact(
        "uvicorn",
        "send is bound to an object with a transport, whose protocol has the server_state of its "
        "server; the coroutine Server.serve has that server as self, which has should_exit, awaits "
        "its own shutdown once, and then raises its _captured_signals again; its signal handler "
        "is bound to it, and its config has timeout_graceful_shutdown",
        "0.30 to 0.54",
        "tests/e2e/test_stops.py",
    ),
    Fact(
        "hypercorn",
        "behind send stands an object with context.terminated, whose set is awaited when the "
        "server stops, and one with closed, set when the client has closed the stream",
        "0.17 to 0.18",
        "tests/e2e/test_stops.py",
    ),
    Fact(
        "gunicorn",
        "a forked worker has the arbiter on its stack, whose cfg has graceful_timeout; the arbiter "
        "passes SIGINT on as SIGQUIT",
        "23 to 27",
        "tests/e2e/test_shutdown.py",
    ),
    Fact(
        "gunicorn",
        "a worker that serves WSGI is a SyncWorker, ThreadWorker or AsyncWorker, whose load_wsgi "
        "sets wsgi, the application, after init_signals; cfg.threads and cfg.worker_connections "
        "limit what it serves at once",
        "20.1 to 27",
        "tests/e2e/test_wsgi_servers.py",
    ),
    Fact(
        "waitress",
        "an environ has the bound method waitress.client_disconnected of a channel with a server, "
        "whose task_dispatcher has adj.threads threads; it keeps its application, and runs in the "
        "main thread",
        "2.0 to 3.0",
        "tests/e2e/test_wsgi_servers.py",
    ),
    Fact(
        "gevent",
        "pywsgi's WSGIServer keeps its application, and a server's serve_forever runs in the main "
        "greenlet",
        "21.1 to 26",
        "tests/e2e/test_wsgi_servers.py",
    ),
    Fact(
        "eventlet",
        "wsgi.Server keeps its application as app, and wsgi.server runs in the main thread, whose "
        "native id is the process's on Linux",
        "0.36 to 0.41",
        "tests/e2e/test_wsgi_servers.py",
    ),
    Fact(
        "uWSGI",
        "an environ has uwsgi.version, and the module uwsgi has cores, the number of a worker's "
        "threads; exit hooks run in a worker that serves no request, and in no other",
        "2.0.31",
        "tests/applications/test_uwsgi.py",
    ),
    Fact(
        "granian",
        "a forked worker has the server on its stack, which has workers_kill_timeout",
        "2.1 to 2.8",
        "tests/e2e/test_shutdown.py",
    ),
    Fact(
        "aiohttp",
        "a request's protocol has no _manager once the connection is lost; a server that stops "
        "awaits its shutdown, which cuts the request at its end",
        "3.11 to 3.14",
        "tests/e2e/test_stops.py",
    ),
    Fact(
        "Tornado",
        "a handler passes what it flushes through its _transforms to write_headers or write of its "
        "connection, and has its response's headers in _headers, and _headers_written and "
        "_finished; its connection has a stream with closed, "
        "_write_buffer and socket, and calls _close_callback when that closes; a server that stops "
        "closes its HTTP1ServerConnections; _has_stream_request_body is called after prepare; "
        "_handle_request_exception gets what leaves a handler",
        "6.1 to 6.6",
        "tests/e2e/test_tornado_streams.py",
    ),
    Fact(
        "Sanic",
        "a native request's stream has response_func, by which a response sends its next part and "
        "which is None after the last, the response, and the exception of a time-out of Sanic's; "
        "TouchUp.run compiles methods of Sanic anew; a server that stops aborts its protocols, and "
        "a protocol whose client has left is called by connection_lost; errors of the application "
        "go to handle_exception",
        "23.12 to 25.12",
        "tests/e2e/test_sanic_streams.py",
    ),
    Fact(
        "trio",
        "its time-outs are called TooSlowError, and its cancellations Cancelled",
        "0.25 to 0.35",
        "tests/e2e/test_trio.py",
    ),
    Fact(
        "gevent, eventlet",
        "their time-outs are called Timeout, and are no Exceptions; a greenlet that is killed gets "
        "greenlet's GreenletExit",
        "gevent 21.1 to 26, eventlet 0.36 to 0.41",
        "tests/unit/stream/test_named_errors.py",
    ),
    Fact(
        "Litestar",
        "the scope has path_template",
        "2.0 to 2.24",
        "tests/e2e/test_middleware_streams.py",
    ),
    Fact(
        "Starlette, Litestar",
        "an exception that has a handler is wrapped in a RuntimeError or a LitestarException that "
        "says that the response has started",
        "Starlette 0.35 to 1.10, Litestar 2.0 to 2.24",
        "tests/e2e/test_close_causes.py",
    ),
    Fact(
        "Starlette",
        "background tasks run in the module starlette.background",
        "0.35 to 1.10",
        "tests/e2e/test_close_causes.py",
    ),
    Fact(
        "uvicorn, Hypercorn, Granian, Daphne, gunicorn",
        "they keep the ASGI application that they call in Config.loaded_app, ASGIWrapper.app, "
        "the first argument of granian.asgi._callback_wrapper, Server.application and "
        "ASGIWorker.asgi",
        "uvicorn 0.30 to 0.54, Hypercorn 0.17 to 0.18, Granian 2.0 to 2.8, Daphne 4.0 to 4.2, "
        "gunicorn 25 to 27",
        "tests/e2e/test_asgi_servers.py",
    ),
    Fact(
        "Starlette",
        "a router puts itself into the scope, as router",
        "0.35 to 1.10",
        "tests/e2e/test_starlette_streams.py",
    ),
    Fact(
        "Django",
        "BaseHandler._get_response and _get_response_async run inside every middleware",
        "4.2 to 5.2",
        "tests/e2e/test_coexistence_frameworks.py",
    ),
    Fact(
        "Django",
        "a StreamingHttpResponse keeps its iterator in _iterator, which is read after the response "
        "has started",
        "4.2 to 5.2",
        "tests/e2e/test_content_codings.py",
    ),
    Fact(
        "Flask",
        "process_response gets the response, its last argument, before any after_request function",
        "2.2 to 3.1",
        "tests/e2e/test_content_codings.py",
    ),
    Fact(
        "Falcon",
        "what App._get_responder returns ends with the URI template",
        "3.0 to 4.4",
        "tests/e2e/test_asgi_frameworks.py",
    ),
    Fact(
        "opentelemetry-instrumentation-asgi",
        "its middleware keeps the application as app",
        "0.61b0 to 0.66b1",
        "tests/e2e/test_asgi_servers.py",
    ),
    Fact(
        "opentelemetry-instrumentation-requests",
        "its spans have the scope of its name, and are current around the adapter",
        "0.61b0 to 0.66b1",
        "tests/e2e/test_coexistence.py",
    ),
)

# uvicorn's own limit is believed where it is at most this part of the time before the kill: what it
# cuts has to be exported in the rest.
_BELIEVED_PART: Final = 0.8

_STARLETTE_WRAPPER: Final = "Caught handled exception, but response already started."
_LITESTAR_ERROR: Final = ("litestar", "LitestarException")
_LITESTAR_WRAPPER: Final = "Exception caught after response started"
_TIMEOUTS: Final = frozenset(
    {("eventlet", "Timeout"), ("gevent", "Timeout"), ("trio", "TooSlowError")}
)
_CANCELLATIONS: Final = frozenset({("greenlet", "GreenletExit"), ("trio", "Cancelled")})
_CONTRIB_ASGI: Final = "opentelemetry.instrumentation.asgi"
# contrib's instrumentations of clients whose own span is current in their hooks.
_CONTRIB_CLIENTS: Final = frozenset(
    f"opentelemetry.instrumentation.{name}" for name in ("requests", "tornado", "urllib", "urllib3")
)

# Objects that are looked at between a framework's send and the server's: far more than any stack
# of middleware has, and a bound for objects that make new ones whenever they are looked at.
_MAX_OBJECTS: Final = 10_000
# Where servers and middleware keep the send that they wrap.
_INNER: Final = ("__self__", "__wrapped__", "func", "send", "_send", "_receive", "writer")


def find_transport(channel: Any) -> Transport | None:
    """The asyncio transport behind an ASGI ``send`` or ``receive``; None where none is found.

    Servers bind them to the object that holds it, directly or some objects deep; middleware wraps
    them in objects and closures.
    """
    found: Transport | None = _find_behind(channel, _transport)
    stream = _find_behind(channel, _hypercorn_stream) if "hypercorn" in sys.modules else None
    return found if found is None or stream is None else HypercornTransport(found, stream)


def find_server(channel: Any) -> Any:
    """What stands for the server behind an ASGI ``send``: uvicorn's ServerState, hypercorn's
    WorkerContext; None for any other.
    """
    if "uvicorn" in sys.modules or "hypercorn" in sys.modules:
        return _find_behind(channel, _server)
    return None


def find_uvicorn_server(state: Any) -> Any:
    """The Server with that ServerState, which runs in this loop; None if there is none."""
    if not hasattr(state, "total_requests"):
        return None
    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        while coroutine is not None:
            # Not the locals of any other frame: to look at them prolongs their lives.
            if getattr(coroutine, "__qualname__", "") == "Server.serve":
                server = coroutine.cr_frame.f_locals.get("self")
                if getattr(server, "server_state", None) is state:
                    return server
            coroutine = getattr(coroutine, "cr_await", None)
    return None


def is_stop_requested(uvicorn: Any) -> bool:
    """Whether uvicorn's Server, or None, is asked to stop."""
    return bool(getattr(uvicorn, "should_exit", False))


def has_stop_signal(uvicorn: Any) -> bool:
    """Whether a signal has stopped uvicorn's Server, which then raises it again."""
    return bool(getattr(uvicorn, "_captured_signals", None))


def is_stop_event_set(context: Any) -> bool:
    """Whether hypercorn's WorkerContext, or any other object, has terminated."""
    terminated = getattr(context, "terminated", None)
    return terminated is not None and bool(terminated.is_set())


def kill_timeout(handler: Any, frame: FrameType | None, shutdown_seconds: float) -> float:
    """Seconds until the live streams are cut by the server or the process is killed.

    Args:
        handler: the server's own signal handler: uvicorn's knows when uvicorn cuts them.
        frame: the frame that the signal interrupted: a forked worker of gunicorn or granian has
            its master on the stack, which kills the worker in the end.
        shutdown_seconds: when the process is killed at the latest; a server's own limit counts
            only below it.

    Returns:
        Infinity where the server cuts the streams itself.

    """
    while frame is not None:
        master: Any = frame.f_locals.get("self")
        home = type(master).__module__.partition(".")[0]
        config = getattr(master, "cfg", None) if home == "gunicorn" else master
        name = {"gunicorn": "graceful_timeout", "granian": "workers_kill_timeout"}.get(home, "")
        if hasattr(config, name):
            return min(float(getattr(config, name) or shutdown_seconds), shutdown_seconds)
        frame = frame.f_back
    uvicorn = getattr(getattr(handler, "__self__", None), "config", None)
    own = getattr(uvicorn, "timeout_graceful_shutdown", None)
    if own is not None and own <= _BELIEVED_PART * shutdown_seconds:
        return float("inf")
    return shutdown_seconds


def uses_sigquit() -> bool:
    """Whether SIGQUIT may ask this process to stop: gunicorn's master sends it for a SIGINT."""
    return "gunicorn" in sys.modules


def is_event_loop_handler(handler: Any) -> bool:
    """Whether an event loop has installed the signal handler for ``add_signal_handler``."""
    return str(getattr(handler, "__module__", "")).partition(".")[0] in ("asyncio", "uvloop")


def is_aiohttp_peer_lost(protocol: Any) -> bool:
    """Whether the connection of an ``aiohttp.web`` request is lost."""
    return getattr(protocol, "_manager", None) is None


def tornado_transport(connection: Any) -> Transport | None:
    """The transport of a Tornado connection; None where it shows none."""
    stream = getattr(connection, "stream", None)
    return _TornadoTransport(stream) if hasattr(stream, "closed") else None


def route_in_scope(scope: Mapping[str, Any]) -> str | None:
    """The route that a framework has put into the ASGI scope; Litestar does."""
    route: str | None = scope.get("path_template")
    # It is empty below a mount.
    return route or None


def unwrap_framework_error(error: BaseException) -> BaseException | None:
    """The application's exception that a framework has wrapped since the response had started.

    Starlette and Litestar do that with an exception for which the application has a handler.
    """
    # The text only of theirs: that of an application's may take long, or raise.
    starlette = type(error) is RuntimeError and error.args == (_STARLETTE_WRAPPER,)
    litestar = _class_of(type(error)) == _LITESTAR_ERROR and _LITESTAR_WRAPPER in str(error)
    return error.__cause__ if starlette or litestar else None


def is_timeout(error: BaseException) -> bool:
    """Whether ``error`` is a time-out of trio's, gevent's or eventlet's."""
    return _is_any(error, _TIMEOUTS)


def is_cancellation(error: BaseException) -> bool:
    """Whether trio, gevent or eventlet has cancelled the code that ``error`` has left."""
    return _is_any(error, _CANCELLATIONS)


def _is_any(error: BaseException, names: frozenset[tuple[str, str]]) -> bool:
    return any(_class_of(kind) in names for kind in type(error).__mro__)


def _class_of(kind: type) -> tuple[str, str]:
    """The package and the name of a class that need not be installed."""
    return kind.__module__.partition(".")[0], kind.__name__


def is_from_background_task(error: BaseException) -> bool:
    """Whether ``error`` was raised in a background task of Starlette, after the response."""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") == "starlette.background":
            return True
        traceback = traceback.tb_next
    return False


def is_contrib_middleware(app: Any) -> bool:
    """Whether an ASGI application is contrib's middleware around one, which it keeps as ``app``."""
    return type(app).__module__ == _CONTRIB_ASGI and hasattr(app, "app")


def is_contrib_client_span(span: Any) -> bool:
    """Whether contrib's instrumentation of a client has made this span. Tornado's makes those of
    its server, too.
    """
    scope = getattr(span, "instrumentation_scope", None)
    is_client = getattr(span, "kind", None) is SpanKind.CLIENT
    return scope is not None and is_client and scope.name in _CONTRIB_CLIENTS


def pool_of_worker(worker: Any) -> int | None:
    """How many streams a WSGI worker of gunicorn holds at once; None where that is not known."""
    kinds = {each.__name__ for each in type(worker).__mro__}
    if "ThreadWorker" in kinds:
        return int(worker.cfg.threads)
    if "AsyncWorker" in kinds:
        return int(worker.cfg.worker_connections)
    return 1 if "SyncWorker" in kinds else None


def pool_of_request(environ: Mapping[str, Any]) -> tuple[Any, int | None]:
    """The pool behind a WSGI environ, which several servers may share, and how many threads it has;
    waitress and uWSGI show that.
    """
    if "uwsgi.version" in environ and "uwsgi" in sys.modules:
        # The module is the worker's own.
        worker = sys.modules["uwsgi"]
        return worker, getattr(worker, "cores", None)
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    server = getattr(channel, "server", None)
    pool = getattr(server, "task_dispatcher", None)
    return pool, getattr(getattr(server, "adj", None), "threads", None)


class HypercornTransport:
    """A transport of hypercorn, which stays open when the client closes: its stream does not.

    Attributes:
        shared: the transport itself, which HTTP/2 streams share.

    """

    __slots__ = ("_stream", "shared")

    def __init__(self, transport: Transport, stream: Any) -> None:
        self.shared = transport
        self._stream = stream

    def is_closing(self) -> bool:
        return bool(self._stream.closed) or self.shared.is_closing()

    def get_write_buffer_size(self) -> int:
        return self.shared.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.shared.get_extra_info(name, default)


class _TornadoTransport:
    """Tornado's IOStream as a transport: it is closed as soon as its peer has closed."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def is_closing(self) -> bool:
        return bool(self._stream.closed())

    def get_write_buffer_size(self) -> int:
        return len(self._stream._write_buffer)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._stream.socket if name == "socket" else default


def _hypercorn_stream(item: Any) -> Any:
    home = getattr(type(item), "__module__", "")
    return item if home.startswith("hypercorn.") and hasattr(item, "closed") else None


def _transport(item: Any) -> Any:
    for name in ("transport", "_transport"):
        transport = getattr(item, name, None)
        if callable(getattr(transport, "get_write_buffer_size", None)):
            return transport
    return None


def _server(item: Any) -> Any:
    context = getattr(item, "context", None)
    if hasattr(context, "terminated"):
        return context
    transport = _transport(item)
    return getattr(transport and transport.get_protocol(), "server_state", None)


_NO_ATTRIBUTE: Final = "otel_sse_no_attribute"


def _find_behind(channel: Any, wanted: Callable[[Any], Any]) -> Any:
    # The nearest first. They refer back to each other, and are kept, so that no id is reused.
    queue = deque([channel])
    seen = {id(channel): channel}
    while queue and len(seen) < _MAX_OBJECTS:
        item = queue.popleft()
        # An attribute of an unknown object may raise anything: the search ends there alone. So it
        # does at one that has any attribute at all, such as a mock in an application's test.
        with suppress(Exception):
            if hasattr(item, _NO_ATTRIBUTE):
                continue
            found = wanted(item)
            if found is not None:
                return found
            for each in _wrapped_by(item):
                if id(each) not in seen:
                    seen[id(each)] = each
                    queue.append(each)
    return None


def _wrapped_by(item: Any) -> list[Any]:
    found = [getattr(item, name, None) for name in _INNER]
    free = getattr(getattr(item, "__code__", None), "co_freevars", ())
    for name, cell in zip(free, getattr(item, "__closure__", None) or (), strict=False):
        if name.endswith(("send", "receive")):
            found.append(cell.cell_contents)
    return [each for each in found if each is not None]
