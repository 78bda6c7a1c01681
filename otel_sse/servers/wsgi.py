"""Any WSGI application: ``SSEWSGIMiddleware``, and the observer of one request.

``start_response`` shows that the response is an event stream, and its iterable is wrapped then::

    server                         _Body                           application
    ──────                         ─────                           ───────────
    app(environ, start_response) ───────────────────────────────►  start_response(...), returns
                                                                   an iterable
    next() ──────────────────────► the last chunk has been sent:
                                   on_send(chunk, yielded, now)
                                   resume ──────────────────────►  next()
                                   suspend ◄─────────────────────  chunk
    sends it, waits ◄───────────── chunk, yielded
    close() ─────────────────────► exhausted? completed, else the client has disconnected or the
                                   server stops ────────────────►  close()

A chunk counts once the server asks for the next one, since only that shows that it was sent. A
generator may start its response at the first ``next``, so an iterable is wrapped too whose response
has not started. Any other is returned as it came.

Frames nest: the server's hook is around a framework's, and middleware may stand in between. The
innermost one observes, inside that middleware, and those around it pass the response through.
Source of the rules: https://peps.python.org/pep-3333/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind, TracerProvider, get_current_span

from otel_sse.process.server_pools import note_pool_of_request
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import PausedRequest, current_request
from otel_sse.stream.server import ServerStream
from otel_sse.stream.sharing import acquire_telemetry, open_server_stream
from otel_sse.telemetry.providers import Providers
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream
from otel_sse.wire.opaque import is_encoded
from otel_sse.wire.trace_comment import TraceCommentWriter

Environ = dict[str, Any]
Write = Callable[[bytes], object]
StartResponse = Callable[..., Write]
App = Callable[[Environ, StartResponse], Iterable[bytes]]
RouteOf = Callable[[Environ], "str | None"]
Headers = list[tuple[str, str]]

# The key of the observer in the environ of its request.
_KEY: Final = "otel_sse"
_BYTES: Final = (bytes, bytearray, memoryview)


def wrap_wsgi_app(
    run: Callable[..., Iterable[bytes]],
    telemetry_of: Callable[[Any], Telemetry | None],
    route_of: RouteOf | None = None,
) -> Callable[[Any, Environ, StartResponse], Iterable[bytes]]:
    """A WSGI ``__call__`` that runs ``run`` with the same arguments and records its stream.

    Args:
        run: takes the owner of the call, environ and start_response.
        telemetry_of: gives the owner's telemetry, or None where nothing is to be recorded.
        route_of: gives the route when a stream starts, of a framework whose own code starts the
            response: the span that is current then is the request's, none of the application's.

    """

    def call(owner: Any, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        telemetry = telemetry_of(owner)
        if telemetry is None:
            return run(owner, environ, start_response)
        outer: RequestObserver | None = environ.get(_KEY)
        if outer is None:
            current = current_request.get()
            if current is not None and not current.over:
                # Within an ASGI application, which is observed already.
                return run(owner, environ, start_response)
        elif outer.request.stream is not None:
            return run(owner, environ, start_response)
        observer = environ[_KEY] = RequestObserver(
            telemetry, environ, start_response, route_of, outer
        )
        request = observer.request
        request.resume()
        try:
            body = run(owner, environ, observer.start_response)
        except BaseException as error:
            request.suspend()
            observer.end(error)
            raise
        request.suspend()
        return observer.observe(body)

    return call


def observer_of(environ: Environ) -> RequestObserver | None:
    """The observer of a request that is no stream yet; None if there is none."""
    observer: RequestObserver | None = environ.get(_KEY)
    return observer


class SSEWSGIMiddleware:
    """Records the event streams of a WSGI application.

    Put it innermost, inside other instrumentation, so that its spans are children of theirs.
    Everything that is not a stream, and every byte of one, passes unchanged.

    Args:
        app: the application.
        tracer_provider: the global one by default, as the other two.
        meter_provider: likewise.
        logger_provider: likewise.
        options: those of ``config.Config``, such as ``stall_seconds=30``.

    Raises:
        ValueError: an option has a bad value.
        TypeError: there is no such option.

    """

    def __init__(
        self,
        app: App,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        **options: Any,
    ) -> None:
        self.app = app
        providers = Providers(tracer_provider, meter_provider, logger_provider)
        self._telemetry = acquire_telemetry(SSEWSGIMiddleware, providers, options)

    __call__ = wrap_wsgi_app(
        lambda self, environ, start_response: self.app(environ, start_response),
        lambda self: self._telemetry,
    )


class RequestObserver:
    """Observes the response of one request.

    Attributes:
        request: the request's state.
        stream: the stream that the response is, from its start on.
        comments: writes trace comments into it, where that is asked for.
        route: the route, where the framework has shown it before the response.
        inner: the observer that observes in its place, inside of a middleware.

    """

    __slots__ = (
        "_environ",
        "_outer",
        "_route_of",
        "_start_response",
        "_started",
        "_telemetry",
        "comments",
        "inner",
        "request",
        "route",
        "stream",
    )

    def __init__(
        self,
        telemetry: Telemetry,
        environ: Environ,
        start_response: StartResponse,
        route_of: RouteOf | None,
        outer: RequestObserver | None,
    ) -> None:
        self._telemetry = telemetry
        self._environ = environ
        self._start_response = start_response
        self._route_of = route_of
        self._outer = outer
        self._started = False
        self.stream: ServerStream | None = None
        self.comments: TraceCommentWriter | None = None
        self.route: str | None = None
        self.inner: RequestObserver | None = None
        if outer is None:
            self.request = PausedRequest()
        else:
            outer.inner = self
            self.request = outer.request
            self.request.enter_middleware()

    def start_response(self, status: str, headers: Headers, *exc_info: Any, **more: Any) -> Write:
        write = self._start_response(status, headers, *exc_info, **more)
        stream = self.stream
        if stream is not None:
            # Another response in its place, since nothing of the stream has been sent.
            error = next((each[1] for each in (*exc_info, *more.values()) if each), None)
            stream.close(error, cut=self._telemetry.stopping)
            return write
        if self.inner is None:
            self._started = True
            self._maybe_start_stream(status, headers)
        return write if self.stream is None else self._observed_write(write)

    def observe(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """``body``, or what observes it in its place."""
        if self.inner is not None:
            return body
        if self._started and self.stream is None:
            self.end()
            return body
        wrapper = self._environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):
            return self._observe_file(body)
        return (_SizedBody if hasattr(body, "__len__") else _Body)(self, body)

    def is_over(self) -> bool:
        """Whether there is nothing to observe: the response is no stream, or observed inside."""
        return self.inner is not None or (self._started and self.stream is None)

    def disconnected(self) -> None:
        """The server closes the response before its end."""
        if self.stream is not None:
            self.stream.mark_disconnected(cut=self._telemetry.stopping)
            self.stream.on_response_end(delivered=False)

    def end(self, error: BaseException | None = None) -> None:
        """The response is over, since ``error`` left the application or at its close."""
        if self.stream is not None:
            self.stream.close(error, cut=self._telemetry.stopping)
        outer, self._outer = self._outer, None
        if self._environ.get(_KEY) is self:
            if outer is None:
                del self._environ[_KEY]
            else:
                self._environ[_KEY] = outer
        if outer is not None and self.stream is None:
            # What is around it may answer by a stream.
            outer.inner = None
        elif outer is None or outer.stream is None:
            self.request.finish(None)

    def _maybe_start_stream(self, status: str, headers: Headers) -> None:
        """Starts to record the stream that these start, if they do."""
        try:
            # Rejects nearly every other response at once.
            for name, value in headers:
                if len(name) == len("content-type") and "stream" in value.lower():
                    break
            else:
                return
            content_type = _joined(headers, "content-type")
            code = int(status[:3])
            method = self._environ["REQUEST_METHOD"]
            if not is_event_stream(method, code, content_type) or self.request.stream is not None:
                return
            encoded = is_encoded(_joined(headers, "content-encoding"))
            info = self._stream_info(method, code, encoded)
            if info is None:
                return
            span = get_current_span()
            if self._route_of is not None or getattr(span, "kind", None) is SpanKind.SERVER:
                self.request.state.context = otel_context.get_current()
            self.stream = open_server_stream(
                self._telemetry, info, self.request.state, threaded=True
            )
            note_pool_of_request(self._environ)
            grows = not encoded and not _joined(headers, "content-length")
            if grows and self._telemetry.config.propagate:
                self.comments = TraceCommentWriter()
        except Exception:
            self._telemetry.failures.log_failure_once("a stream's start")

    def _stream_info(self, method: str, status: int, encoded: bool) -> ServerStreamInfo | None:
        """What is known of the stream; None where its URL is excluded."""
        environ = self._environ
        scheme = environ.get("wsgi.url_scheme", "http")
        path = _text(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))
        host = environ.get("HTTP_HOST", "")
        if self._telemetry.config.excludes(f"{scheme}://{host}{path}"):
            return None
        route = self.route
        if route is None and self._route_of is not None:
            try:
                route = self._route_of(environ)
            except Exception:
                # A missing route never costs the stream.
                route = None
        return ServerStreamInfo(
            method=method,
            route=route,
            scheme=scheme,
            known_path=None if route is None else path,
            client=environ.get("REMOTE_ADDR") or None,
            user_agent=environ.get("HTTP_USER_AGENT"),
            protocol=environ.get("SERVER_PROTOCOL", "HTTP/1.1").rpartition("/")[2],
            status=status,
            resumed="HTTP_LAST_EVENT_ID" in environ,
            carrier=environ,
            getter=_getter,
            transport=None,
            encoded=encoded,
        )

    def _observed_write(self, write: Write) -> Write:
        """``start_response``'s ``write``, which sends at once."""

        def observed(chunk: bytes) -> object:
            stream, comments = self.stream, self.comments
            if stream is None:
                return write(chunk)
            began = perf_counter()
            try:
                result = write(chunk if comments is None else comments.insert(chunk))
            except BaseException as error:
                stream.on_send_error(chunk, began, error)
                raise
            stream.on_send(chunk, began, perf_counter())
            return result

        return observed

    def _observe_file(self, body: Any) -> Iterable[bytes]:
        """A server may send a file by the kernel: only its end can be seen, its bytes cannot."""
        close = getattr(body, "close", None)

        def observed() -> None:
            if self.stream is not None:
                self.stream.on_response_end()
            try:
                if close is not None:
                    close()
            finally:
                self.end()

        try:
            body.close = observed
        except AttributeError:
            self.end()
        return body  # type: ignore[no-any-return]


class _Body:
    """The iterable of a response that is a stream, or that has not started yet."""

    __slots__ = ("_body", "_chunk", "_exhausted", "_iterator", "_observer", "_yielded")

    def __init__(self, observer: RequestObserver, body: Iterable[bytes]) -> None:
        # None once there is nothing more to observe.
        self._observer: RequestObserver | None = observer
        self._body = body
        self._iterator: Iterator[bytes] | None = None
        self._exhausted = False
        # What the server sends now, and since when.
        self._chunk: bytes | None = None
        self._yielded = 0.0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        observer = self._observer
        if observer is None:
            return next(self._iterator)  # type: ignore[arg-type]
        request, stream = observer.request, observer.stream
        if self._chunk is not None:
            if stream is not None:
                stream.on_send(self._chunk, self._yielded, perf_counter())
            self._chunk = None
        request.resume()
        if stream is not None and request.state.span is None:
            stream.attach_context()
        try:
            if self._iterator is None:
                self._iterator = iter(self._body)
            chunk = next(self._iterator)
        except StopIteration:
            request.suspend()
            self._exhausted = True
            if observer.stream is not None:
                observer.stream.on_response_end()
            raise
        except BaseException as error:
            request.suspend()
            self._observer = None
            observer.end(error)
            raise
        request.suspend()
        if observer.stream is None:
            if observer.is_over():
                self._observer = None
                if observer.inner is None:
                    observer.end()
            return chunk
        self._chunk = chunk or None
        if chunk and observer.comments is not None:
            chunk = observer.comments.insert(chunk)
        self._yielded = perf_counter()
        return chunk

    def close(self) -> None:
        observer, self._observer = self._observer, None
        close = getattr(self._body, "close", None)
        if observer is None:
            if close is not None:
                close()
            return
        error: BaseException | None = None
        if not self._exhausted:
            if isinstance(self._chunk, (*_BYTES, type(None))):
                observer.disconnected()
            else:
                error = TypeError("a chunk that is no bytes")
        try:
            if close is not None:
                observer.request.resume()
                try:
                    close()
                finally:
                    observer.request.suspend()
        except BaseException as raised:
            error = raised
            raise
        finally:
            observer.end(error)
            del error

    def __del__(self) -> None:
        # A server, or what is in between, has not closed it.
        if self._observer is not None:
            if not self._exhausted:
                self._observer.disconnected()
            self._observer.end()


class _SizedBody(_Body):
    """Of an iterable with a length: a server may send a content-length by it."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]


def _joined(headers: Headers, wanted: str) -> str:
    """The values of all headers of a name, as one (RFC 9110, section 5.2)."""
    return ",".join(
        [value for name, value in headers if len(name) == len(wanted) and name.lower() == wanted]
    )


def _text(path: str) -> str:
    """A path of an environ, whose characters stand for bytes."""
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


class _EnvironGetter(Getter[Environ]):
    def get(self, carrier: Environ, key: str) -> list[str] | None:
        value = carrier.get(f"HTTP_{key.upper().replace('-', '_')}")
        return None if value is None else [value]

    def keys(self, carrier: Environ) -> list[str]:
        return [name[5:].lower().replace("_", "-") for name in carrier if name.startswith("HTTP_")]


_getter: Final = _EnvironGetter()
