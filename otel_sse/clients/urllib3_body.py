"""The body of urllib3's responses, which requests reads, too."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from urllib3.exceptions import (
    BodyNotHttplibCompatible,
    HTTPError,
    IncompleteRead,
    ResponseNotChunked,
)
from urllib3.util.response import is_fp_closed

from otel_sse.stream.body import BodyReader, Original
from otel_sse.stream.nested import ObservedStream

# A wrong call, not the end of a body.
_MISUSES: Final = (ResponseNotChunked, BodyNotHttplibCompatible)


def is_decodable(response: Any, encoding: str) -> bool:
    """Whether urllib3 has a decoder for each coding; it passes over what it does not know."""
    known = getattr(response, "CONTENT_DECODERS", ())
    return all(coding.strip().lower() in known for coding in encoding.split(","))


class Urllib3Reader(BodyReader):
    __slots__ = ("_decodable",)

    methods: ClassVar = {
        "read": "read_content",
        "read1": "read_content",
        "read_chunked": "read_chunked",
        "close": "close",
        # Another thread's end of a read.
        "shutdown": "close",
        "drain_conn": "close",
    }

    def __init__(self, stream: ObservedStream, decodable: bool) -> None:
        super().__init__(stream)
        self._decodable = decodable

    def is_complete(self, body: Any) -> bool:
        # What is decoded may wait for its reader; urllib3 1.26 has no such buffer.
        decoded = getattr(body, "_decoded_buffer", ())
        decoder = getattr(body, "_decoder", None)
        return (
            is_fp_closed(body._fp)
            and not len(decoded)
            and not getattr(decoder, "has_unconsumed_tail", False)
        )

    def check_complete(self, body: Any) -> None:
        if self.is_complete(body) and body.length_remaining:
            # urllib3 1.26 raises nothing for it by default, and 2 not if it is asked not to.
            self.end(body, IncompleteRead(0, body.length_remaining))
        else:
            super().check_complete(body)

    def is_broken(self, body: Any, error: BaseException) -> bool:
        return bool(is_fp_closed(body._fp)) or (
            isinstance(error, HTTPError) and not isinstance(error, _MISUSES)
        )

    def read_content(self, body: Any, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Observes ``read`` or ``read1``; both have the same second parameter."""
        self.set_decoding_of(body, args, kwargs)
        return self.read(body, original, *args, **kwargs)

    def read_chunked(self, body: Any, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Observes a generator that, unlike ``read``, takes None for no decoding."""
        self._set_decoding(kwargs.get("decode_content", args[1] if len(args) > 1 else None))
        return self.iterate(body, original(*args, **kwargs))

    def set_decoding_of(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What a read with these arguments gives."""
        decodes = kwargs.get("decode_content", args[1] if len(args) > 1 else None)
        self._set_decoding(body.decode_content if decodes is None else decodes)

    def _set_decoding(self, decodes: Any) -> None:
        if self._decodable and not decodes:
            self._decodable = False
            self.stream.set_opaque()
