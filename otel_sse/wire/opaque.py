"""A body whose messages are not read: it is encoded, and nobody here decodes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from otel_sse.wire.parser import Message


class OpaqueBody:
    """In place of a parser: there are bytes, but neither messages nor comments."""

    __slots__ = ()

    comments = 0
    final = False

    def match_template(self, chunk: bytes | bytearray | memoryview) -> str | None:
        return None

    def forget_chunk(self) -> None:
        pass

    def feed(self, chunk: bytes | bytearray | memoryview) -> Sequence[Message]:
        return ()


OPAQUE_BODY: Final = OpaqueBody()


def is_encoded(content_encoding: str) -> bool:
    """Whether the value of a Content-Encoding header names a coding."""
    return content_encoding.strip().lower() not in ("", "identity")
