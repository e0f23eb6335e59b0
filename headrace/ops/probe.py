"""What this machine can do: measured read bandwidth of memory, the bound of every decode step.

Owns nothing. Called by `app.doctor`, never on the serving path. Numbers are of this moment: other load shows in them.
Method: threads sum disjoint parts of an array much larger than the caches; the best of a few passes counts.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BYTES = 256 << 20
_PASSES = 5


def read_bandwidth(num_threads: int, *, size_bytes: int = _BYTES, passes: int = _PASSES) -> float:
    """Return bytes per second that `num_threads` threads read together. Cost: `size_bytes` of memory, a second."""
    parts = np.array_split(np.ones(size_bytes // 8, np.int64), num_threads)
    best_s = float("inf")
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(passes):
            start_s = time.perf_counter()
            for future in [pool.submit(np.bitwise_or.reduce, part) for part in parts]:
                future.result()
            best_s = min(best_s, time.perf_counter() - start_s)
    return sum(part.nbytes for part in parts) / best_s
