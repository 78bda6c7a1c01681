"""HTTP content coding that is live: after each write, the client can decode all of it.

aiohttp's own ``enable_compression`` leaves what was written last in the coder until more comes,
and a message with it. From 3.12 on aiohttp takes another zlib, though, and this is one whose
coders finish what they are given. README.md compares it with envelopes.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, Final

import aiohttp

# A coder belongs to one connection and lives as long: 32 KiB, where zlib's defaults take 256.
WINDOW_BITS: Final = 12
MEMORY_LEVEL: Final = 5
_REFUSED: Final = re.compile(r"\s*q\s*=\s*0(\.0*)?\s*", re.IGNORECASE)


class _Coder:
    def __init__(self, coder: Any) -> None:
        self._coder = coder
        self.flush = coder.flush

    def compress(self, data: Any) -> bytes:
        return bytes(self._coder.compress(data) + self._coder.flush(zlib.Z_SYNC_FLUSH))


class _Zlib:
    def __getattr__(self, name: str) -> Any:
        return getattr(zlib, name)

    def compressobj(self, *args: Any, wbits: int = zlib.MAX_WBITS, **options: Any) -> Any:
        # 16 more is for gzip.
        bits = 16 + WINDOW_BITS if wbits > zlib.MAX_WBITS else wbits
        options |= {"wbits": bits, "memLevel": MEMORY_LEVEL}
        return _Coder(zlib.compressobj(*args, **options))


def takes_gzip(accepted: str) -> bool:
    """Whether a client with that ``Accept-Encoding`` can be sent gzip."""
    accepts: dict[str, bool] = {}
    for each in accepted.split(","):
        name, _, weight = each.partition(";")
        accepts[name.strip().lower()] = not _REFUSED.fullmatch(weight)
    return accepts.get("gzip", accepts.get("*", False))


def install() -> None:
    """From now on, all that aiohttp compresses in this process is flushed with each write."""
    aiohttp.set_zlib_backend(_Zlib())
