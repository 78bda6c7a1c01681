"""Streams that are read to serve another: a transport of a client may send by another client.

Where both are instrumented, one stream would count twice: where the outer client reads it and where
its transport does. Only the outer one counts, since it has the decoded bytes. What an application
reads while a transport calls it in this process is a stream of its own, also in the tasks that it
starts. So a context variable, which tasks inherit, cannot separate the two; this does:

- A ``TransportCall`` stands for one request that a custom transport serves. It is active in the
  task or thread that sends the request or reads the response by that transport, and in no other.
- A stream that opens while the outer response is read, in the same task, is a part of it.
- A stream that opens while the outer request is sent may be either. It is decided at its first
  read, by a ``DeferredStream``: read while the outer response is read, it is a part of that.

A library may also stand on another one that has hooks: requests on urllib3, and that on
http.client. There every response of the lower one is the upper one's, and no code of the
application runs in between. So ``upper_request`` is enough: a lower one's hooks pass each request
through that is sent within another.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from threading import get_ident
from typing import Final

from otel_sse.process import gc_safety
from otel_sse.stream.client import ClientStream

# The innermost call that is active, by task or thread.
_active: Final[dict[Hashable, TransportCall]] = {}
# The request of the upper library that is being sent, as its hooks know it.
upper_request: Final[ContextVar[object | None]] = ContextVar("otel_sse_upper_request", default=None)


class TransportCall:
    """A request that a custom transport serves. The block is active while it sends or reads.

    Attributes:
        sending: there is no response yet.
        observed: the response is an event stream that is recorded.

    """

    __slots__ = ("_owner", "_previous", "observed", "sending")

    def __init__(self) -> None:
        self.sending = True
        self.observed = False
        self._owner: Hashable = None
        self._previous: TransportCall | None = None

    def __enter__(self) -> None:
        self._owner = _task_or_thread()
        self._previous = _active.get(self._owner)
        _active[self._owner] = self

    def __exit__(self, *_: object) -> None:
        if self._previous is None:
            _active.pop(self._owner, None)
        else:
            _active[self._owner] = self._previous
        self._owner = self._previous = None

    def is_reading(self) -> bool:
        """Whether this task or thread is in a read of the response, at any depth."""
        call = active_transport_call()
        while call is not None:
            if call is self:
                return not self.sending
            call = call._previous
        return False


class DeferredStream:
    """A stream that opened while ``call`` was sending: opened at its first read, unless it is a
    part of the outer one.
    """

    __slots__ = ("__weakref__", "_call", "_open", "_stream")

    def __init__(self, call: TransportCall, open_stream: Callable[[], ClientStream | None]) -> None:
        self._call = call
        self._open: Callable[[], ClientStream | None] | None = open_stream
        self._stream: ClientStream | None = None

    def _decide(self, nested: bool) -> None:
        open_stream, self._open = self._open, None
        if open_stream is not None and not nested:
            self._stream = open_stream()

    def _read(self) -> ClientStream | None:
        if self._open is not None:
            self._decide(self._call.is_reading())
        return self._stream

    def wait_started(self) -> None:
        if (stream := self._read()) is not None:
            stream.wait_started()

    def wait_ended(self) -> None:
        if self._stream is not None:
            self._stream.wait_ended()

    def on_chunk(self, chunk: bytes, waited: bool = False) -> None:
        if (stream := self._read()) is not None:
            stream.on_chunk(chunk, waited=waited)

    def set_opaque(self) -> None:
        if self._stream is not None:
            self._stream.set_opaque()

    def close(self, error: BaseException | None = None, *, completed: bool = False) -> None:
        if self._open is not None:
            if gc_safety.in_finalizer(error):
                # Nothing may open here.
                gc_safety.defer(self.close)
                return
            self._decide(self._call.observed)
        if self._stream is not None:
            self._stream.close(error, completed=completed)

    def on_owner_freed(self) -> None:
        if self._open is not None:
            gc_safety.defer(self.close)
        elif self._stream is not None:
            self._stream.on_owner_freed()


ObservedStream = ClientStream | DeferredStream


def active_transport_call() -> TransportCall | None:
    """The innermost call that this task or thread is in."""
    return _active.get(_task_or_thread()) if _active else None


def iterate_within(call: TransportCall, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """``chunks``, each of them read within ``call``."""
    while True:
        with call:
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


def _task_or_thread() -> Hashable:
    # Without a loop ``current_task`` raises, which takes longer than all of this.
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    if task is not None:
        return task
    trio = sys.modules.get("trio")
    if trio is not None:
        with contextlib.suppress(RuntimeError):
            found: Hashable = trio.lowlevel.current_task()
            return found
    return get_ident()
