"""A histogram that costs two list operations per observation.

Owns its counts. One thread observes and renders (the network thread), so there is no lock.
Edges are upper bounds, inclusive, as Prometheus has them; the last bucket is +Inf.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

# vLLM's edges, so that dashboards made for it keep their resolution; the first three of ITL are ours, for small models.
TTFT_EDGES_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_EDGES_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip
LATENCY_EDGES_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
STEP_TOKEN_EDGES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICE_EDGES = (1, 2, 5, 10, 20)
LENGTH_EDGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


def with_edge(edges: Sequence[float], edge: float | None) -> Sequence[float]:
    """Return the edges with one more, in order, so that what lies below it is counted exactly."""
    return edges if edge is None else sorted({*edges, edge})


class Histogram:
    """Counts per bucket and the sum of what was observed."""

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._edges, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return (upper bound as Prometheus spells it, cumulative count), +Inf last."""
        total = 0
        cumulative: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._edges), "+Inf"), self._counts, strict=True):
            total += count
            cumulative.append((bound, float(total)))
        return cumulative
