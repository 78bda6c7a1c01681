"""Compressed messages: data in an envelope, as ``examples/browser/README.md`` describes it.

A message is packed once, when it is published, and is smaller from there on: in the history, in
Redis and in every queue.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import zlib
from typing import Any, Final

from server.meters import Meters

_log: Final = logging.getLogger("server")

# Bytes of data whose compression would hold up the event loop for more than a millisecond or two.
IN_THREAD: Final = 32_768
# Bytes that an envelope's text may have at most.
MAX_SIZE: Final = 16 * 2**20


async def pack(data: str, least: int, meters: Meters) -> str:
    """The data in an envelope, where it has ``least`` bytes and gets smaller; else as it is."""
    raw = data.encode()
    if not least or len(raw) < least:
        return data
    try:
        if len(raw) >= IN_THREAD:
            packed = await asyncio.to_thread(wrap, raw)
        else:
            packed = wrap(raw)
    except Exception:
        _log.exception("a message is sent as it is, because it cannot be compressed")
        return data
    if len(packed) >= len(raw):
        return data
    meters.original.add(len(raw))
    meters.compressed.add(len(packed))
    return packed


def wrap(raw: bytes) -> str:
    """The envelope of a text in UTF-8."""
    # No time in it: the same text gives the same envelope.
    data = base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()
    return json.dumps({"encoding": "gzip", "data": data, "size": len(raw)})


def unwrap(data: str) -> str:
    """The text that the data stands for. Data that is no valid envelope is returned unchanged."""
    if not data.startswith("{") or '"gzip"' not in data:
        return data
    try:
        envelope = json.loads(data)
        if set(envelope) != {"encoding", "data", "size"} or envelope["encoding"] != "gzip":
            return data
        size: Any = envelope["size"]
        if type(size) is not int or not 0 <= size <= MAX_SIZE:
            return data
        packed = base64.b64decode(envelope["data"], validate=True)
        # What unpacks to more than its size is not unpacked to its end.
        inflate = zlib.decompressobj(wbits=31)
        raw = inflate.decompress(packed, size + 1)
        if len(raw) != size or not inflate.eof or inflate.unused_data:
            return data
        return raw.decode()
    except (ValueError, TypeError, RecursionError, zlib.error):
        return data
