"""The limits a native step is measured against: how fast memory is read and how fast cores multiply, here and now.

Owns nothing. Called by `headrace doctor` and the benchmarks, never on the serving path. Other load shows in them.
Method: memory is read as two prefetched streams per thread over an area far larger than the caches; products run in
registers, in more independent sums than a product takes cycles. The best of a few passes counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from headrace.ops.native.library import Pool, library
from headrace.ops.native.linear import aligned_bytes

_READ_BYTES = 256 << 20
_SPINS = 1 << 19
_PASSES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLimits:
    """Bytes read per second, and operations per second (a multiply-add is two) by kind of product."""

    read_bytes_per_s: float
    int8_ops_per_s: float
    bf16_ops_per_s: float


def measure_limits(num_threads: int, *, read_bytes: int = _READ_BYTES, passes: int = _PASSES) -> MachineLimits:
    """Measure this machine with `num_threads` threads. Cost: `read_bytes` of memory, about half a second."""
    with ThreadPoolExecutor(1) as caller:  # one that may be pinned: the thread that asks may not
        return caller.submit(_measure, num_threads, read_bytes, passes).result()


def _measure(num_threads: int, read_bytes: int, passes: int) -> MachineLimits:
    with Pool(num_threads) as pool:
        pool.pin_caller()
        area = aligned_bytes(read_bytes)
        area[:] = 1
        native = library()
        return MachineLimits(
            read_bytes_per_s=_rate(lambda: native.hr_read_memory(pool.handle, area.ctypes.data, read_bytes, 1), passes),
            int8_ops_per_s=2 * _rate(lambda: native.hr_spin_int8(pool.handle, _SPINS), passes),
            bf16_ops_per_s=2 * _rate(lambda: native.hr_spin_bf16(pool.handle, _SPINS), passes),
        )


def _rate(run: Callable[[], int], passes: int) -> float:
    """Return the most units of work per second over some passes."""
    best = 0.0
    for _ in range(passes):
        start = time.perf_counter()
        done = run()
        best = max(best, done / (time.perf_counter() - start))
    return best
