"""urllib3, and what reads by it: launchdarkly-eventsource, botocore, niquests.

A pool sends each request, behind a ``PoolManager``'s redirects: where it returns a response that is
an event stream, the response becomes one that records what is read of it; see ``stream.body``.
Every way of reading passes ``read``, ``read1`` or ``read_chunked``, after content coding. What
urllib3 reads itself, as it does by default, is read where the response is made, and observed there.

urllib3-future, by which niquests reads, takes urllib3's place. Over HTTP/2 a pool of it may promise
a response and return it later, and its own reader of events closes a response in its own way.
"""

from __future__ import annotations

from functools import wraps
from types import ModuleType
from typing import Any

from urllib3.connectionpool import HTTPConnectionPool
from urllib3.response import HTTPResponse

from otel_sse.clients.urllib3_body import Urllib3Reader
from otel_sse.clients.urllib3_request import (
    FETCHING,
    PoolRequest,
    is_sending,
    on_fetch_failure,
    on_fetched,
    preloading_request,
)
from otel_sse.instrumentor import Hooks
from otel_sse.stream.body import end_if_observed
from otel_sse.stream.nested import upper_request


class Urllib3Hooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch(HTTPConnectionPool, "urlopen", self._urlopen)
        self._patch(HTTPResponse, "__init__", _init)
        if hasattr(HTTPConnectionPool, "get_response"):
            self._patch(HTTPConnectionPool, "get_response", self._get_response)

    def _urlopen(self, original: Any) -> Any:
        @wraps(original)
        def urlopen(pool: Any, *args: Any, **kwargs: Any) -> Any:
            telemetry = self.telemetry
            if telemetry is None or is_sending():
                return original(pool, *args, **kwargs)
            request = PoolRequest(telemetry, Urllib3Reader, pool, args, kwargs)
            token = upper_request.set(request)
            try:
                response = original(pool, *args, **kwargs)
            except BaseException as error:
                request.on_failure(error)
                request.release()
                raise
            finally:
                upper_request.reset(token)
            request.on_return(response, HTTPResponse)
            return response

        return urlopen

    def _get_response(self, original: Any) -> Any:
        @wraps(original)
        def get_response(pool: Any, *args: Any, **kwargs: Any) -> Any:
            if self.telemetry is None or upper_request.get() is not None:
                return original(pool, *args, **kwargs)
            token = upper_request.set(FETCHING)
            try:
                response = original(pool, *args, **kwargs)
            except BaseException as error:
                on_fetch_failure(kwargs.get("promise"), error)
                raise
            finally:
                upper_request.reset(token)
            on_fetched(response)
            return response

        return get_response


class Urllib3EventsHooks(Hooks):
    """Of urllib3-future's own reader of events: its close does not pass the response's."""

    def install(self, module: ModuleType) -> None:
        self._patch(module.ServerSideEventExtensionFromHTTP, "close", _close_events)


def _init(original: Any) -> Any:
    @wraps(original)
    def init(response: Any, *args: Any, **kwargs: Any) -> None:
        request = preloading_request(kwargs)
        if request is None:
            original(response, *args, **kwargs)
            return
        original(response, *args, **{**kwargs, "preload_content": False})
        request.on_preload(response)
        # As it would have done.
        if not response._body:
            response._body = response.read(decode_content=kwargs.get("decode_content", True))

    return init


def _close_events(original: Any) -> Any:
    @wraps(original)
    def close(reader: Any) -> None:
        response = reader._response
        # Raises while another thread reads, which goes on then.
        original(reader)
        end_if_observed(response)

    return close
