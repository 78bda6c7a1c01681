"""The observer of one WSGI request, and the iterable of its response.

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

Source of the rules: https://peps.python.org/pep-3333/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind, get_current_span
from wrapt import ObjectProxy

from otel_sse.process import gc_safety
from otel_sse.process.server_pools import note_pool_of_request
from otel_sse.servers.content import Content
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import PausedRequest, current_request
from otel_sse.stream.server import ServerStream
from otel_sse.stream.sharing import open_server_stream
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

# The key of the observer in the environ of its request. One without a dot would be a CGI variable,
# and had to be a string.
KEY: Final = "otel_sse.request"
# That of one that is over.
_NO_ENVIRON: Final[Environ] = {}
_BYTES: Final = (bytes, bytearray, memoryview)


def may_be_event_stream(headers: Iterable[tuple[str, str]]) -> bool:
    """Rejects nearly every response that is none at once: no content type of fewer than 17
    characters is the one.
    """
    try:
        for name, value in headers:
            # The name first: some servers take other values than text, such as a number.
            if len(name) == 12 and len(value) > 16 and "stream" in value.lower():
                return True
    except Exception:
        # What is called no headers; the framework or the server refuses it as it would without us.
        pass
    return False


class RequestObserver(PausedRequest):
    """Observes the response of one request.

    Attributes:
        observed: the stream that it observes, from its start on; another observer of the same
            request may observe it instead.
        comments: writes trace comments into it, where that is asked for.
        route: the route, where the framework has shown it before the response.
        content: what the body holds before a content coding, where the framework shows that.
        inner: the observer that observes in its place, inside of a middleware.
        passes: the response has started, and is no stream.

    """

    __slots__ = (
        "_environ",
        "_observed_inside",
        "_outer",
        "_route_of",
        "_start_response",
        "_telemetry",
        "comments",
        "content",
        "inner",
        "observed",
        "passes",
        "route",
    )

    def __init__(
        self,
        telemetry: Telemetry,
        environ: Environ,
        start_response: StartResponse,
        route_of: RouteOf | None,
        outer: RequestObserver | None,
    ) -> None:
        PausedRequest.__init__(self)
        self._telemetry = telemetry
        self._environ = environ
        self._start_response = start_response
        self._route_of = route_of
        self._outer = outer
        self._observed_inside = False
        self.passes = False
        self.observed: ServerStream | None = None
        self.comments: TraceCommentWriter | None = None
        self.route: str | None = None
        self.content: Content | None = None
        self.inner: RequestObserver | None = None
        if outer is not None:
            outer.inner = self
            outer.enter_middleware()
            self.known_state = outer.state

    def passes_to(
        self, telemetry: Telemetry, environ: Environ, start_response: StartResponse
    ) -> bool:
        """Whether a frame inside, called with these, needs no observer of its own: it is called
        within ``run``, by no middleware that changes the request or the response's start.
        """
        return (
            self._resumed is None
            and environ is self._environ
            and telemetry is self._telemetry
            and start_response == self.start_response
        )

    def run_inside(
        self, run: Callable[..., Iterable[bytes]], owner: Any, route_of: RouteOf | None
    ) -> Iterable[bytes]:
        """Runs a framework within ``run``. A stream is observed in here, since middleware around
        it may handle its errors or change its chunks.
        """
        self._route_of = route_of
        self.enter_middleware()
        try:
            body = run(owner, self._environ, self.start_response)
        except BaseException as error:
            if self.observed is not None:
                self.suspend()
                self.observed.close(error, cut=self._telemetry.stopping)
            raise
        if self.observed is not None:
            self.suspend()
            body = self._observe(body)
            self._observed_inside = True
        return body

    def run(self, run: Callable[..., Iterable[bytes]], owner: Any) -> Iterable[bytes]:
        """Runs the application, up to the iterable of its response."""
        environ = self._environ
        environ[KEY] = self
        # As ``resume`` and ``suspend`` do where nothing is attached: each call takes its time.
        before = current_request.set(self)
        try:
            body = run(owner, environ, self.start_response)
        except BaseException as error:
            self._resumed = before
            self.suspend()
            self.end(error)
            raise
        if self.passes and self._outer is None and self.known_state is None:
            # Nearly every request comes here.
            try:
                current_request.reset(before)
            except ValueError:
                pass  # as in ``suspend``
            environ.pop(KEY, None)
            self.over = True
            self._outside = None
            self._environ = _NO_ENVIRON
            return body
        self._resumed = before
        self.suspend()
        return self._observe(body)

    def start_response(self, status: str, headers: Headers, *exc_info: Any, **more: Any) -> Write:
        if exc_info or more:
            write = self._start_response(status, headers, *exc_info, **more)
        else:
            # To unpack what is empty takes as long as all of the rest.
            write = self._start_response(status, headers)
        stream = self.observed
        if stream is not None:
            # Another response in its place, since nothing of the stream has been sent.
            error = next((each[1] for each in (*exc_info, *more.values()) if each), None)
            stream.close(error, cut=self._telemetry.stopping)
            return write
        if self.inner is not None:
            return write
        # Once the body has been returned unobserved nothing would close a stream.
        if not self.over and may_be_event_stream(headers):
            self._maybe_start_stream(status, headers)
        self.passes = self.observed is None
        return write if self.passes else self._observed_write(write)

    def _observe(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """``body``, or what observes it in its place."""
        if self.inner is not None or self._observed_inside:
            return body
        if self.passes:
            self.end()
            return body
        wrapper = self._environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):
            return self._observe_file(body)
        if hasattr(body, "__len__"):
            return _SizedBody(self, body)
        return (_MappingBody if hasattr(body, "__getitem__") else _Body)(self, body)

    def is_over(self) -> bool:
        """Whether there is nothing to observe: the response is no stream, or observed inside."""
        return self.inner is not None or self.passes

    def disconnected(self) -> None:
        """The server closes the response before its end."""
        if self.observed is not None:
            self.observed.mark_disconnected(cut=self._telemetry.stopping)
            self.observed.on_response_end(delivered=False)

    def close_body(
        self, close: Callable[[], object] | None, *, exhausted: bool, chunk: object
    ) -> None:
        """The server closes the response: after its end if that is ``exhausted``, else while
        ``chunk`` is sent. ``close`` is the application's own.
        """
        error: BaseException | None = None
        if not exhausted:
            if isinstance(chunk, (*_BYTES, type(None))):
                self.disconnected()
            else:
                error = TypeError("a chunk that is no bytes")
        try:
            if close is not None:
                self.resume()
                try:
                    close()
                finally:
                    self.suspend()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.end(error)
            del error

    def abandon(self, *, exhausted: bool) -> None:
        """The response was freed without a close; ``exhausted``: at its end."""
        if not exhausted:
            self.disconnected()
        self.end()

    def end(self, error: BaseException | None = None) -> None:
        """The response is over, since ``error`` left the application or at its close."""
        if self.observed is not None:
            self.observed.close(error, cut=self._telemetry.stopping)
        outer, self._outer = self._outer, None
        if self._environ.get(KEY) is self:
            if outer is None:
                del self._environ[KEY]
            else:
                self._environ[KEY] = outer
        # What the request has started may keep its context variables, and so this, for long.
        self._environ = _NO_ENVIRON
        if outer is not None and self.observed is None:
            # What is around it may answer by a stream.
            outer.inner = None
            self.over = True
        else:
            self.finish(None)

    def _maybe_start_stream(self, status: str, headers: Headers) -> None:
        """Starts to record the stream that these start, if they do."""
        try:
            content_type = _joined(headers, "content-type")
            code = int(status[:3])
            method = self._environ["REQUEST_METHOD"]
            if not is_event_stream(method, code, content_type) or self.stream is not None:
                return
            encoded = is_encoded(_joined(headers, "content-encoding"))
            if self.content is not None and not self.content.is_needed(encoded):
                self.content = None
            encoded = encoded and self.content is None
            info = self._stream_info(method, code, encoded)
            if info is None:
                return
            span = get_current_span()
            if self._route_of is not None or getattr(span, "kind", None) is SpanKind.SERVER:
                self.state.context = otel_context.get_current()
            self.observed = open_server_stream(self._telemetry, info, self.state, threaded=True)
            note_pool_of_request(self._environ)
            comments = None
            grows = not encoded and not _joined(headers, "content-length")
            if grows and self._telemetry.config.propagate:
                comments = TraceCommentWriter()
            if self.content is None:
                self.comments = comments
            elif self.observed is not None:
                self.content.start(self.observed, comments)
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
            stream, comments = self.observed, self.comments
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
            if self.observed is not None:
                self.observed.on_response_end()
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
    """The iterable of a response that is a stream, or that has not started yet. Middleware that
    looks at it sees the application's.
    """

    def __init__(self, observer: RequestObserver, body: Iterable[bytes]) -> None:
        self._chunks = _Chunks(observer, body)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._chunks.body.__class__  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chunks.body, name)

    def __iter__(self) -> Iterator[bytes]:
        # What can be gone over again is, and is recorded once.
        chunks = self._chunks
        return iter(chunks.body) if chunks.exhausted else chunks

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self._chunks.close()


class _MappingBody(_Body):
    """Of an iterable that is a mapping, too: Django's responses are one of their headers."""

    def __getitem__(self, key: Any) -> Any:
        return self._chunks.body[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._chunks.body[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._chunks.body[key]

    def __contains__(self, key: Any) -> bool:
        return key in self._chunks.body


class _Chunks:
    """Its iterator, a class apart: one that looks up any attribute finds its own more slowly.

    Attributes:
        body: the application's iterable.
        exhausted: it has reached its end.

    """

    __slots__ = ("_chunk", "_iterator", "_observer", "_yielded", "body", "exhausted")

    def __init__(self, observer: RequestObserver, body: Any) -> None:
        # None once there is nothing more to observe.
        self._observer: RequestObserver | None = observer
        self.body = body
        self._iterator: Iterator[bytes] | None = None
        self.exhausted = False
        # What the server sends now, and since when.
        self._chunk: bytes | None = None
        self._yielded = 0.0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        observer = self._observer
        if observer is None:
            return next(self._iterator)  # type: ignore[arg-type]
        stream = observer.observed
        if self._chunk is not None:
            if stream is not None:
                stream.on_send(self._chunk, self._yielded, perf_counter())
            self._chunk = None
        observer.resume()
        if stream is not None and observer.known_state.span is None:  # type: ignore[union-attr]
            stream.attach_context()
        try:
            if self._iterator is None:
                self._iterator = iter(self.body)
            chunk = next(self._iterator)
        except StopIteration:
            observer.suspend()
            self.exhausted = True
            if observer.observed is not None:
                observer.observed.on_response_end()
            raise
        except BaseException as error:
            observer.suspend()
            self._observer = None
            observer.end(error)
            raise
        observer.suspend()
        if observer.observed is None:
            if observer.is_over():
                self._observer = None
                if observer.inner is None:
                    observer.end()
            return chunk
        self._chunk = chunk or None
        if observer.content is not None:
            self._chunk = observer.content.take() or None
        if chunk and observer.comments is not None:
            chunk = observer.comments.insert(chunk)
        self._yielded = perf_counter()
        return chunk

    def close(self) -> None:
        observer, self._observer = self._observer, None
        close = getattr(self.body, "close", None)
        if observer is not None:
            observer.close_body(close, exhausted=self.exhausted, chunk=self._chunk)
        elif close is not None:
            close()

    def __del__(self) -> None:
        # A server, or what is in between, has not closed it.
        if self._observer is not None:
            gc_safety.defer(partial(self._observer.abandon, exhausted=self.exhausted))


class _SizedBody(ObjectProxy):  # type: ignore[type-arg]
    """It may be gone over more than once: eventlet adds up its chunks for the length of the content
    before it sends them, gevent while it sends the first one, and middleware may join them. The
    pass that goes on last, or that is left last, is the one that sends. That is known at the close
    alone, and its chunks are recorded then, with the times of their sends.

    No trace comment is inserted, since the length may have been sent.
    """

    def __init__(self, observer: RequestObserver, body: Iterable[bytes]) -> None:
        super().__init__(body)
        # None once there is nothing more to observe.
        self._self_observer: RequestObserver | None = observer
        # The pass that has gone on, or has been left, last.
        self._self_last = _Pass()

    def __iter__(self) -> Iterator[bytes]:
        chunks, each = _lazily(self.__wrapped__), _Pass()
        while (observer := self._self_observer) is not None:
            try:
                chunk = _resumed(observer, chunks)
            except StopIteration:
                each.exhausted, self._self_last = True, each
                return
            except BaseException as error:
                self._self_observer = None
                each.record(observer)
                observer.end(error)
                raise
            if observer.is_over():
                self._self_observer = None
                if observer.inner is None:
                    observer.end()
            each.chunk, began = chunk or None, perf_counter()
            try:
                yield chunk
            finally:
                self._self_last = each
            if chunk:
                each.sent.append((chunk, began, perf_counter()))
            each.chunk = None
        yield from chunks

    def close(self) -> None:
        observer, self._self_observer = self._self_observer, None
        close = getattr(self.__wrapped__, "close", None)
        if observer is not None:
            last = self._self_last
            last.record(observer)
            observer.close_body(close, exhausted=last.exhausted, chunk=last.chunk)
        elif close is not None:
            close()

    def __del__(self) -> None:
        # A server, or what is in between, has not closed it.
        if self._self_observer is not None:
            gc_safety.defer(partial(self._self_last.abandon, self._self_observer))


class _Pass:
    """What one pass has come to.

    Attributes:
        sent: the chunks that have been sent, each with the times of its start and its end.
        chunk: what is sent now.
        exhausted: it has reached the end.

    """

    __slots__ = ("chunk", "exhausted", "sent")

    def __init__(self) -> None:
        self.sent: list[tuple[Any, float, float]] = []
        self.chunk: Any = None
        self.exhausted = False

    def record(self, observer: RequestObserver) -> None:
        stream, content = observer.observed, observer.content
        if stream is None:
            return
        for chunk, began, ended in self.sent:
            stream.on_send(chunk if content is None else content.take(), began, ended)
        if self.exhausted:
            stream.on_response_end()

    def abandon(self, observer: RequestObserver) -> None:
        self.record(observer)
        observer.abandon(exhausted=self.exhausted)


def _lazily(body: Iterable[bytes]) -> Iterator[bytes]:
    """Calls nothing of the application before the first ``next``."""
    yield from body


def _resumed(observer: RequestObserver, chunks: Iterator[bytes]) -> bytes:
    """The next chunk, by the application's code where it makes them only now."""
    observer.resume()
    try:
        if observer.observed is not None and observer.state.span is None:
            observer.observed.attach_context()
        return next(chunks)
    finally:
        observer.suspend()


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
