"""Host memory for KV blocks: a fixed number of slots, each a frame: room for a header, then one block's bytes.

Owns the memory, and nothing of who may use which slot: that is `kv.tiers`. The executor copies blocks to and from
`slot`; I/O threads send and receive the whole `frame`, so that no byte is copied once more on its way.
Invariant: a slot is written by one side at a time; its pages are taken from the system when first written.
Implements `core.protocols.HostMemory`.
"""

from __future__ import annotations

import contextlib
import mmap
import time

from headrace.core.errors import OutOfMemory
from headrace.kv.transfer.frames import HEADER_BYTES

_ALIGN = 64
_PROBE_BYTES = 4 << 20


class HostPool:
    """`num_slots` slots for blocks of `block_bytes` bytes. Raises OutOfMemory when the system refuses."""

    def __init__(self, num_slots: int, block_bytes: int) -> None:
        if num_slots < 1 or block_bytes < 1:
            raise ValueError(f"a host pool of {num_slots} slots of {block_bytes} bytes")
        self.num_slots = num_slots
        self.block_bytes = block_bytes
        self._stride = -(-(HEADER_BYTES + block_bytes) // _ALIGN) * _ALIGN
        try:
            # Private: memory that might be shared gets small pages, and copies to it are a quarter slower.
            memory = mmap.mmap(-1, num_slots * self._stride, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise OutOfMemory(
                f"{num_slots:,} host slots of {block_bytes:,} bytes for KV blocks are more than the system gives; "
                "lower engine.kv_ram_bytes",
                param="engine.kv_ram_bytes",
            ) from error
        with contextlib.suppress(OSError, AttributeError, ValueError):  # not every system has them
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory = memoryview(memory)

    def slot(self, index: int) -> memoryview:
        """Return the bytes of a slot's block."""
        start = index * self._stride + HEADER_BYTES
        return self._memory[start : start + self.block_bytes]

    def whole(self) -> memoryview:
        """Return all slots and headers in one piece."""
        return self._memory

    def frame(self, index: int) -> memoryview:
        """Return a slot's header and block."""
        start = index * self._stride
        return self._memory[start : start + HEADER_BYTES + self.block_bytes]


def copy_rate() -> float:
    """Measure how fast this machine copies memory, in bytes per second. Takes a few milliseconds."""
    source, target = bytearray(b"\1" * _PROBE_BYTES), bytearray(b"\2" * _PROBE_BYTES)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        target[:] = source
        best = min(best, time.perf_counter() - began)
    return _PROBE_BYTES / max(best, 1e-9)
