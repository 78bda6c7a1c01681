"""The asynchronous part of urllib3-future, by which niquests' asynchronous sessions read.

It does as the synchronous one does, in coroutines; see ``clients.urllib3``. Every way of reading
passes ``read`` or ``read1``.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial, wraps
from types import ModuleType
from typing import Any, ClassVar

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
from otel_sse.process import gc_safety
from otel_sse.stream.body import Original, end_if_observed, reader_of
from otel_sse.stream.nested import ObservedStream, upper_request


class AsyncUrllib3Hooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._response = module.AsyncHTTPResponse
        self._patch(module.AsyncHTTPConnectionPool, "urlopen", self._urlopen)
        self._patch(module.AsyncHTTPConnectionPool, "get_response", self._get_response)
        self._patch(self._response, "__init__", _init)

    def _urlopen(self, original: Any) -> Any:
        @wraps(original)
        async def urlopen(pool: Any, *args: Any, **kwargs: Any) -> Any:
            telemetry = self.telemetry
            if telemetry is None or is_sending():
                return await original(pool, *args, **kwargs)
            request = PoolRequest(telemetry, AsyncUrllib3Reader, pool, args, kwargs)
            token = upper_request.set(request)
            try:
                response = await original(pool, *args, **kwargs)
            except BaseException as error:
                request.on_failure(error)
                request.release()
                raise
            finally:
                _reset(token)
            request.on_return(response, self._response)
            return response

        return urlopen

    def _get_response(self, original: Any) -> Any:
        @wraps(original)
        async def get_response(pool: Any, *args: Any, **kwargs: Any) -> Any:
            if self.telemetry is None or upper_request.get() is not None:
                return await original(pool, *args, **kwargs)
            token = upper_request.set(FETCHING)
            try:
                response = await original(pool, *args, **kwargs)
            except BaseException as error:
                on_fetch_failure(kwargs.get("promise"), error)
                raise
            finally:
                _reset(token)
            on_fetched(response)
            return response

        return get_response


class AsyncUrllib3EventsHooks(Hooks):
    """Of urllib3-future's own reader of events: its close does not pass the response's."""

    def install(self, module: ModuleType) -> None:
        self._patch(module.AsyncServerSideEventExtensionFromHTTP, "close", _close_events)


def _reset(token: Any) -> None:
    # A coroutine that is garbage is closed in another context.
    with suppress(ValueError):
        upper_request.reset(token)


def _init(original: Any) -> Any:
    @wraps(original)
    def init(response: Any, *args: Any, **kwargs: Any) -> None:
        original(response, *args, **kwargs)
        # The connection that makes it reads it next.
        request = preloading_request(kwargs)
        if request is not None:
            request.on_preload(response)

    return init


def _close_events(original: Any) -> Any:
    @wraps(original)
    async def close(reader: Any) -> None:
        # Before the close, which cancels a read in another task.
        end_if_observed(reader._response)
        await original(reader)

    return close


class AsyncUrllib3Reader(Urllib3Reader):
    __slots__ = ("_task",)

    methods: ClassVar = {
        "read": "read_async",
        "read1": "read_async",
        "close": "close_async",
        "drain_conn": "close_async",
    }

    def __init__(self, stream: ObservedStream, decodable: bool) -> None:
        super().__init__(stream, decodable)
        # That is in a read.
        self._task: asyncio.Task[Any] | None = None

    @classmethod
    def make_method(cls, kind: type, name: str) -> Original:
        observer = cls.methods[name]

        @wraps(getattr(kind, name))
        async def method(body: Any, *args: Any, **kwargs: Any) -> Any:
            original = getattr(kind, name).__get__(body)
            reader = reader_of(body)
            if reader is None or reader.is_reading():
                return await original(*args, **kwargs)
            return await getattr(reader, observer)(body, original, *args, **kwargs)

        return method

    def is_reading(self) -> bool:
        return self._task is not None and self._task is asyncio.current_task()

    async def read_async(self, body: Any, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Observes ``read`` or ``read1``; both have the same second parameter."""
        self.set_decoding_of(body, args, kwargs)
        before, self._task = self._task, asyncio.current_task()
        self.stream.wait_started()
        try:
            data = await original(*args, **kwargs)
        except BaseException as error:
            if gc_safety.in_finalizer(error):
                gc_safety.defer(partial(self.on_error, body, error))
            else:
                self.on_error(body, error)
            raise
        finally:
            self._task = before
        self.on_data(body, data)
        return data

    async def close_async(self, body: Any, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Observes what gives the rest up, before it breaks a read in another task."""
        self.end(body)
        return await original(*args, **kwargs)
