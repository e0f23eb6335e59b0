"""The memory that packed weights live in: huge pages of this process, at once or after a start from the file's own.

Owns the pages and what stands behind them. With small pages products of some rows run slower, waiting for addresses;
with new memory a start waits until the system has cleared as much of it as the weights take. So a file is mapped, and
`settle` moves it piece by piece into huge pages afterwards, under the readers: a piece is copied beside and then put in
the place of the mapped one, by one system call, which a thread that reads there at that moment waits for. Addresses and
bytes stay the same. See design note 018.
Called by `executor.packed_cache` and, for `settle`, by `executor.settling`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import sys
from pathlib import Path

import numpy as np

HUGE_PAGE = 2 << 20
_PIECE = 8 * HUGE_PAGE  # so short that a reader which has to wait for its place does not notice
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAP_FIXED = 0x10
_MREMAP = 0x1 | 0x2  # may move, to a place that is given
_FAILED = ctypes.c_void_p(-1).value


class PackedMemory:
    """Bytes of packed weights. `view` stays valid, and its addresses the same, as long as anybody refers to it."""

    def __init__(self, num_bytes: int, *, is_mapped: bool, kept: mmap.mmap, offset: int) -> None:
        """Take `num_bytes` of `kept` from `offset`; see `fresh` and `mapped`."""
        self.view = memoryview(kept)[offset : offset + num_bytes]
        self._address = int(np.frombuffer(self.view, np.uint8).ctypes.data) if num_bytes else 0
        self._num_bytes = num_bytes
        self._next = 0 if is_mapped else num_bytes

    @classmethod
    def fresh(cls, num_bytes: int) -> PackedMemory:
        """Return zeroed memory to write to, of huge pages where the system has them."""
        kept = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has small pages
        with contextlib.suppress(OSError, AttributeError, ValueError):  # not every system has them
            kept.madvise(mmap.MADV_HUGEPAGE)
        return cls(num_bytes, is_mapped=False, kept=kept, offset=0)

    @classmethod
    def mapped(cls, descriptor: int, num_bytes: int) -> PackedMemory | None:
        """Return the first bytes of an open file, read-only; None where the system has no way to settle them."""
        if not can_settle():
            return None
        # Whoever frees this object unmaps its range, whatever stands there by then: a file's pages or huge ones.
        room = _whole(num_bytes, HUGE_PAGE) + HUGE_PAGE
        kept = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
        start = int(np.frombuffer(kept, np.uint8).ctypes.data)
        offset = -start % HUGE_PAGE
        place = _libc().mmap(start + offset, num_bytes, mmap.PROT_READ, mmap.MAP_PRIVATE | _MAP_FIXED, descriptor, 0)
        if place != start + offset:
            return None
        return cls(num_bytes, is_mapped=True, kept=kept, offset=offset)

    @property
    def is_settled(self) -> bool:
        """Say whether all bytes are where they stay."""
        return self._next >= self._num_bytes

    def settle_piece(self) -> bool:
        """Move the next piece into huge pages; False when there is no more to do, or no memory for it."""
        if self.is_settled:
            return False
        at, end = self._next, min(self._next + _PIECE, self._num_bytes)
        length = _whole(end - at, mmap.PAGESIZE)
        if not _replace(self._address + at, end - at, length):
            self._next = self._num_bytes  # what is mapped serves as well, only not as fast
            return False
        self._next = end
        return not self.is_settled


def can_settle() -> bool:
    """Say whether this system moves pages under their readers, and has huge ones to move them to."""
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    try:
        return "[never]" not in _SWITCH.read_text(encoding="ascii")
    except OSError:
        return False


def _replace(address: int, num_bytes: int, length: int) -> bool:
    """Put a copy in huge pages in the place of `length` mapped bytes; False, and nothing changed, where it fails."""
    libc = _libc()
    room = length + HUGE_PAGE
    start = libc.mmap(None, room, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if start == _FAILED:
        return False
    copy = start + -start % HUGE_PAGE
    libc.madvise(copy, length, mmap.MADV_HUGEPAGE)
    libc.memmove(copy, address, num_bytes)
    is_done: bool = (
        libc.mprotect(copy, length, mmap.PROT_READ) == 0
        and libc.mremap(copy, length, length, _MREMAP, address) == address
    )
    # What is around the copy, and the copy where it could not be moved; of what is gone nothing is left to unmap.
    libc.munmap(start, copy - start)
    libc.munmap(copy + length if is_done else copy, room - (copy - start) - (length if is_done else 0))
    return is_done


def _whole(num_bytes: int, unit: int) -> int:
    return -(-num_bytes // unit) * unit


@functools.cache
def _libc() -> ctypes.CDLL:
    """Return the system's library with the types that are used here."""
    libc = ctypes.CDLL(None, use_errno=True)
    size, address, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    libc.mmap.argtypes, libc.mmap.restype = [address, size, number, number, number, ctypes.c_long], address
    libc.mremap.argtypes, libc.mremap.restype = [address, size, size, number, address], address
    libc.mprotect.argtypes = libc.madvise.argtypes = [address, size, number]
    libc.munmap.argtypes = [address, size]
    libc.memmove.argtypes, libc.memmove.restype = [address, address, size], address
    return libc
