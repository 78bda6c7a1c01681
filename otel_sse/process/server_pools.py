"""How many streams the servers of this process can hold at once, where that is known.

A WSGI server serves each stream in a thread of its pool, or in a greenlet: once all of them serve
streams, it answers nobody else.
"""

from __future__ import annotations

import weakref
from typing import Any

from otel_sse.process.fork import run_in_forked_child
from otel_sse.process.server_facts import pool_of_request

# The size by what stands for a pool or its server. Replaced as a whole: other threads read it.
_pools: tuple[tuple[weakref.ref[Any], int], ...] = ()


def note_pool(pool: Any, size: int | None) -> None:
    """Notes that ``pool`` holds at most ``size`` streams, for as long as it is there."""
    global _pools
    if size and all(each() is not pool for each, _ in _pools):
        alive = tuple(each for each in _pools if each[0]() is not None)
        _pools = (*alive, (weakref.ref(pool), size))


def note_pool_of_request(environ: dict[str, Any]) -> None:
    """Notes the pool of the server that a WSGI request names, if it does."""
    pool, size = pool_of_request(environ)
    if pool is not None:
        note_pool(pool, size)


def connection_limit() -> int | None:
    """The sizes of all pools, added up; None where none is known."""
    return sum(size for each, size in _pools if each() is not None) or None


def _reset() -> None:
    global _pools
    _pools = ()


run_in_forked_child(_reset)
