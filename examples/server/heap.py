"""The bytes of memory that Python holds, as its allocators' own books have it.

Small objects (up to 512 bytes) are pymalloc's, all else is malloc's. ``tracemalloc`` would give the
same, and makes a message of a stream four to five times as expensive (25 us became 125 us, measured
with an aiohttp server); the books cost nothing until they are read: 1 ms to 26 ms for a heap of
300 MB.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Iterable
from typing import Final

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

NAME: Final = "server.heap.usage"
TOTAL: Final = "server.heap.total"
WHY_NOT: Final = "the heap can be read on CPython with glibc 2.33 or later only"
# Reading holds the interpreter: it takes at most this share of the time.
_SHARE: Final = 0.005
_IN_BLOCKS: Final = re.compile(rb"bytes in allocated blocks\s*=\s*([\d,]+)")
_IN_ARENAS: Final = re.compile(rb"arenas \* \d+ bytes/arena\s*=\s*([\d,]+)")
_MALLINFO: Final = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO]


class Heap:
    """The heap in use, and what the allocators have taken from the system for it, read seldom
    enough to cost nothing.
    """

    def __init__(self) -> None:
        self._used = self._total = 0
        self._due = 0.0
        try:
            libc = ctypes.CDLL(None)
            libc.mallinfo2.restype = _Mallinfo
            libc.open_memstream.restype = ctypes.c_void_p
            libc.fclose.argtypes = libc.free.argtypes = [ctypes.c_void_p]
            print_books = ctypes.pythonapi._PyObject_DebugMallocStats
            print_books.argtypes = [ctypes.c_void_p]
        except (AttributeError, OSError, TypeError):
            self.readable = False
        else:
            self._libc, self._print_books = libc, print_books
            self.readable = True

    def used(self) -> int:
        """Bytes in use; only where ``readable``."""
        self._read()
        return self._used

    def total(self) -> int:
        """Bytes that the allocators hold, in use or free; only where ``readable``."""
        self._read()
        return self._total

    def _read(self) -> None:
        began = time.perf_counter()
        if began < self._due:
            return
        # With PYTHONMALLOC=malloc there are no such books: all is malloc's.
        books = self._books()
        rest = self._libc.mallinfo2()
        self._used = _found(_IN_BLOCKS, books) + rest.uordblks + rest.hblkhd
        self._total = _found(_IN_ARENAS, books) + rest.arena + rest.hblkhd
        ended = time.perf_counter()
        self._due = ended + (ended - began) / _SHARE

    def _books(self) -> bytes:
        """What pymalloc prints of itself."""
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        file = self._libc.open_memstream(ctypes.byref(text), ctypes.byref(size))
        if not file:
            return b""
        self._print_books(file)
        self._libc.fclose(file)
        try:
            return ctypes.string_at(text, size.value)
        finally:
            self._libc.free(text)


def _found(pattern: re.Pattern[bytes], books: bytes) -> int:
    found = pattern.search(books)
    return int(found[1].replace(b",", b"")) if found else 0


def record(provider: MeterProvider) -> bool:
    """Makes the heap two metrics of that provider; False where it cannot be read."""
    heap = Heap()

    def used(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(heap.used())

    def total(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(heap.total())

    if heap.readable:
        create = provider.get_meter("server").create_observable_up_down_counter
        create(NAME, [used], "By", "Memory that Python's allocators hold in use.")
        create(TOTAL, [total], "By", "Memory that Python's allocators have of the system.")
    return heap.readable
