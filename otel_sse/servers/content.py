"""The content of a response before a content coding, where the framework's middleware applies that.

Django's middleware and Flask's ``after_request`` functions get a response whose iterator they may
wrap, inside of the frame of the request, which sees the coded bytes. So the iterator of an event
stream is wrapped first::

    frame of the request            middleware                 Parts                  view
    ────────────────────            ──────────                 ─────                  ────
    next() ───────────────────────► next() ──────────────────► next() ──────────────► next()
    sends coded bytes, ◄─────────── encodes, or keeps ◄─────── part, held ◄────────── part
    then records take()

What is recorded for a send is what has passed since the last one, so a message counts once its
coded bytes have been sent. Where no coding has been applied in the end, the frame reads what it
sends.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from time import perf_counter
from typing import Any, Final

from otel_sse.stream.server import ServerStream
from otel_sse.wire.trace_comment import TraceCommentWriter

# Bytes that a coding may keep; what is beyond counts before it has been sent.
MAX_HELD: Final = 2**16

_BYTES: Final = (bytes, bytearray, memoryview)


class Content:
    """What has passed into a response's middleware, and has not been recorded yet.

    Args:
        charset: of what the response's iterator yields as text.
        max_held: bytes that are held at most, where the parts pass in the thread that sends them.

    """

    __slots__ = (
        "_attribute",
        "_charset",
        "_comments",
        "_held",
        "_max_held",
        "_response",
        "_size",
        "_stream",
    )

    def __init__(self, charset: str, max_held: float = MAX_HELD) -> None:
        self._charset = charset
        self._max_held = max_held
        self._held: list[bytes] = []
        self._size = 0
        self._stream: ServerStream | None = None
        self._comments: TraceCommentWriter | None = None
        # Weak: the application's iterator is freed, and so cleans up, when it would without us.
        self._response: weakref.ref[Any] | None = None
        self._attribute = ""

    def hold(self, whole: bytes) -> None:
        """The response has no iterator: this is all of it."""
        self._held.append(whole)

    def observe(self, response: Any, attribute: str, *, is_async: bool = False) -> None:
        """Wraps the iterator that ``response`` keeps in ``attribute``; ``is_async``: which the
        framework goes over so. It may be an iterator of both kinds.
        """
        original = getattr(response, attribute)
        kind: type[_Parts] = _AsyncIteratorParts
        if not is_async:
            kind = next(kind for name, kind in _KINDS if hasattr(original, name))
        setattr(response, attribute, kind(self, original))
        self._response, self._attribute = weakref.ref(response), attribute

    def is_needed(self, encoded: bool) -> bool:
        """Whether a stream has to be read here, since middleware has ``encoded`` it."""
        return not self.restore() and encoded

    def restore(self) -> bool:
        """Takes the wrapper off, where no middleware has wrapped it; gives whether it has."""
        response = None if self._response is None else self._response()
        parts = getattr(response, self._attribute, None)
        if not isinstance(parts, _Parts) or parts.content is not self:
            return False
        setattr(response, self._attribute, parts.original)
        return True

    def start(self, stream: ServerStream, comments: TraceCommentWriter | None) -> None:
        """From now on ``stream`` sends it; with ``comments`` in it, where they are asked for."""
        self._stream = stream
        self._comments = comments

    def take(self) -> bytes:
        """What has passed since the last call."""
        held, self._held = self._held, []
        self._size = 0
        return b"".join(held)

    def passes(self, part: Any) -> Any:
        """A part that the iterator has yielded; gives what is yielded in its place."""
        stream = self._stream
        if stream is None or stream.is_over():
            return part
        try:
            chunk = bytes(part) if isinstance(part, _BYTES) else str(part).encode(self._charset)
            if self._size > self._max_held:
                now = perf_counter()
                stream.on_send(self.take(), now, now)
            if self._comments is not None:
                part = self._comments.insert(chunk)
            self._held.append(chunk)
            self._size += len(chunk)
        except Exception:
            # It is no part of a body: the middleware or the server refuses it as without us.
            pass
        return part


class _Parts:
    """An iterable, as a response keeps it. Middleware that looks at it sees the application's."""

    def __init__(self, content: Content, original: Any) -> None:
        self.content = content
        self.original = original

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self.original.__class__  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


class _IterableParts(_Parts):
    def __iter__(self) -> Iterator[Any]:
        iterable: Iterable[Any] = self.original
        return map(self.content.passes, iterable)


class _IteratorParts(_Parts):
    def __iter__(self) -> _IteratorParts:
        return self

    def __next__(self) -> Any:
        return self.content.passes(next(self.original))


class _GeneratorParts(_IteratorParts):
    def send(self, value: Any) -> Any:
        return self.content.passes(self.original.send(value))

    def throw(self, *error: Any) -> Any:
        return self.content.passes(self.original.throw(*error))


class _AsyncIteratorParts(_Parts):
    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return self.content.passes(await self.original.__anext__())


# By what the iterable has.
_KINDS: Final[tuple[tuple[str, type[_Parts]], ...]] = (
    ("throw", _GeneratorParts),
    ("__next__", _IteratorParts),
    ("__iter__", _IterableParts),
)
