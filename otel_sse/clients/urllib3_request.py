"""A request that a pool of urllib3 sends, and the event stream that answers it."""

from __future__ import annotations

from functools import partial
from inspect import signature
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlsplit

from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import (
    MaxRetryError,
    ProtocolError,
    SSLError,
    TimeoutError,
)
from urllib3.util.retry import Retry

from otel_sse.clients.urllib3_body import Urllib3Reader, is_decodable
from otel_sse.stream.body import observing_class
from otel_sse.stream.info import HTTP_VERSIONS, ClientStreamInfo, caller_context
from otel_sse.stream.nested import upper_request
from otel_sse.stream.sharing import open_client_stream, record_failed_connect
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream, is_redirect
from otel_sse.wire.opaque import is_encoded

# contrib's instrumentation passes all of them by position.
_PARAMETERS: Final = tuple(signature(HTTPConnectionPool.urlopen).parameters)[1:]
# In a promise of urllib3-future: its ``PoolRequest``.
_PROMISE_KEY: Final = "otel_sse_request"
# The ``upper_request`` while a pool fetches what it has promised: its request was sent before.
FETCHING: Final = object()


def is_sending() -> bool:
    """Whether what is sent now is sent for a request that is known already."""
    return upper_request.get() not in (None, FETCHING)


def on_fetched(response: Any) -> None:
    """A pool has fetched the response of a promise."""
    request = _answered_request(getattr(response, "_fp", None))
    if request is not None:
        request.on_response(response)
        request.release()


def on_fetch_failure(promise: Any, error: BaseException) -> None:
    """A pool has not: a later fetch of the same ``promise`` may."""
    request = _promised_request(promise)
    if request is not None:
        request.on_failure(error)


def _promised_request(promise: Any) -> PoolRequest | None:
    """The request that ``promise`` was given for; None where there is no promise."""
    request = promise.get_parameter(_PROMISE_KEY) if hasattr(promise, "get_parameter") else None
    return request if isinstance(request, PoolRequest) else None


def _answered_request(low_response: Any) -> PoolRequest | None:
    """The request that is answered by the response below urllib3's."""
    request = _promised_request(getattr(low_response, "from_promise", None)) or upper_request.get()
    return request if isinstance(request, PoolRequest) else None


def preloading_request(arguments: dict[str, Any]) -> PoolRequest | None:
    """The request whose response is made with these arguments, if it may be a stream that urllib3
    is about to read. Others make responses, too, with headers of any kind.
    """
    if not arguments.get("preload_content", True):
        return None
    request = _answered_request(arguments.get("original_response"))
    return request if request is not None and _may_be_stream(arguments.get("headers")) else None


def _may_be_stream(headers: Any) -> bool:
    try:
        return "stream" in str(headers.get("content-type", "")).lower()
    except AttributeError:
        return False


class PoolRequest:
    """A request that a pool sends, with its own redirects and retries.

    Threads and tasks that urllib3-future starts while it sends inherit it, and may live for as long
    as the pool.
    """

    __slots__ = ("_arguments", "_pool", "_reader", "_reported", "_started", "_telemetry")

    def __init__(
        self,
        telemetry: Telemetry,
        reader: type[Urllib3Reader],
        pool: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._started = perf_counter()
        self._telemetry = telemetry
        self._reader = reader
        self._pool = pool
        self._arguments = (args, kwargs)
        self._reported = False

    def on_failure(self, error: BaseException) -> None:
        """The request, or a wait for what was promised, has failed or was cancelled."""
        if self._reported or not isinstance(error, Exception):
            return
        self._reported = True
        if isinstance(error, MaxRetryError) and error.reason is not None:
            error = error.reason
        record_failed_connect(self._telemetry, partial(self._stream_info, None), error)

    def on_return(self, result: Any, kind: type) -> None:
        """What a pool returns: a response of ``kind``, or a promise of one, over HTTP/2 or later,
        that keeps this request until it comes. HTTP/2's of urllib3 is neither, and read by then.
        """
        if isinstance(result, kind):
            self.on_response(result)
        elif hasattr(result, "set_parameter"):
            result.set_parameter(_PROMISE_KEY, self)
            return
        self.release()

    def on_response(self, response: Any) -> None:
        """A response that may be a stream or a refusal."""
        try:
            if not _may_be_stream(response.headers) and response.status < 400:
                return
            if self._is_stream(response):
                if not self._values().get("preload_content", True):
                    self._observe(response)
            elif response.status >= 400:
                record_failed_connect(self._telemetry, partial(self._stream_info, response))
        except Exception:
            self._telemetry.failures.log_failure_once("a stream's start")

    def on_preload(self, response: Any) -> None:
        """What urllib3 is about to read."""
        try:
            if self._is_stream(response) and not self._is_retried(response):
                self._observe(response)
        except Exception:
            self._telemetry.failures.log_failure_once("a stream's start")

    def release(self) -> None:
        """Lets go of the pool and the arguments: no response of it will be made any more."""
        self._pool = None
        self._arguments = ((), {})

    def _is_stream(self, response: Any) -> bool:
        headers = response.headers
        method = _method(response) or self._values()["method"]
        return is_event_stream(
            method, response.status, headers.get("content-type", "")
        ) and not is_redirect(response.status, headers.get("location"))

    def _is_retried(self, response: Any) -> bool:
        """Whether the status makes urllib3 send the request again: no application gets this."""
        values = self._values()
        retries = values.get("retries")
        if not isinstance(retries, Retry):
            default = self._pool.retries
            retries = Retry.from_int(retries, values.get("redirect", True), default)
        after = bool(response.headers.get("Retry-After"))
        return bool(retries.is_retry(values["method"], response.status, after))

    def _observe(self, response: Any) -> None:
        self._reported = True
        encoding = response.headers.get("content-encoding", "")
        encoded = is_encoded(encoding)
        decodable = encoded and is_decodable(response, encoding)
        observing_class(type(response), self._reader)  # raises before anything is recorded
        stream = open_client_stream(
            self._telemetry,
            response,
            self._stream_info(response)._replace(encoded=encoded and not decodable),
            (ProtocolError, SSLError),
            (TimeoutError,),
        )
        # Of one more that it may try.
        self._started = perf_counter()
        if stream is not None:
            self._reader(stream, decodable).observe(response)

    def _values(self) -> dict[str, Any]:
        args, kwargs = self._arguments
        return {**dict(zip(_PARAMETERS, args, strict=False)), **kwargs}

    def _stream_info(self, response: Any | None) -> ClientStreamInfo:
        """Of a response, or of a request that has none."""
        pool = self._pool
        values = self._values()
        # That of a response may be another one, behind a redirect; it may be a path.
        url = urlsplit((None if response is None else response.geturl()) or values["url"])
        headers = values.get("headers")
        headers = {
            name.lower(): _text(value)
            for name, value in (pool.headers if headers is None else headers).items()
        }
        return ClientStreamInfo(
            method=_method(response) or values["method"],
            scheme=url.scheme or pool.scheme,
            host=url.hostname or pool.host,
            port=url.port if url.hostname else pool.port,
            known_path=url.path,
            protocol=HTTP_VERSIONS.get(0 if response is None else response.version),
            status=0 if response is None else response.status,
            resumed="last-event-id" in headers,
            context=caller_context(),
            started=self._started,
            accept=headers.get("accept", ""),
        )


def _method(response: Any | None) -> str | None:
    """That of the request which was answered; a redirect may have changed it."""
    return getattr(getattr(response, "_original_response", None), "_method", None)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
