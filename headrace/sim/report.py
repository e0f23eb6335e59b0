"""What a simulation came to: hits, latencies, goodput, and how well the cache did against one without a limit.

Values and their making; read by the command line and by tests. Times are virtual, except `wall_s`.
Quantiles are taken over all raw values, by linear interpolation.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import msgspec

from headrace.econ.percentiles import quantile


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of one quantity, in milliseconds; count 0 means that nothing was measured."""

    count: int
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Quantiles:
        """Sum values up."""
        values = sorted(seconds)
        if not values:
            return cls(count=0)
        return cls(
            count=len(values),
            mean=sum(values) / len(values) * 1e3,
            p50=quantile(values, 0.5) * 1e3,
            p90=quantile(values, 0.9) * 1e3,
            p99=quantile(values, 0.99) * 1e3,
            max=values[-1] * 1e3,
        )


class SimReport(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation.

    hit_rate       share of the prompt tokens asked for that the cache had
    of_unlimited   hits over those of a cache without a limit that serves the requests in order of arrival
    goodput_rps    requests per second that met both objectives
    slo_share      their share of all requests, refused ones included
    utilization    share of the time in which a step ran
    wall_s         real seconds that the simulation took
    """

    trace: str
    policy: str
    num_blocks: int
    block_size: int
    cache_share_percent: float | None
    requests: int
    completed: int
    refused: int
    duration_s: float
    steps: int
    prompt_tokens: int
    output_tokens: int
    prompt_tokens_looked_up: int
    prompt_tokens_found: int
    hit_rate: float
    of_unlimited: float
    preemptions: int
    recomputed_tokens: int
    ttft_ms: Quantiles
    itl_ms: Quantiles
    tpot_ms: Quantiles
    e2e_ms: Quantiles
    slo_ttft_ms: float
    slo_tpot_ms: float
    slo_share: float
    goodput_rps: float
    utilization: float
    wall_s: float


class Latencies:
    """Collects the times of requests while a simulation runs. Memory: 8 bytes per token."""

    def __init__(self) -> None:
        self.ttft, self.itl, self.tpot, self.e2e = (array("d") for _ in range(4))
        self.num_good = 0
        self.output_tokens = 0

    def note_gap(self, seconds: float) -> None:
        """Record the time between two tokens of one request."""
        self.itl.append(seconds)

    def note_end(
        self, arrival_s: float, first_s: float, last_s: float, num_tokens: int, slo: tuple[float, float]
    ) -> None:
        """Record a request that has ended by itself; `slo` is the longest TTFT and TPOT, in seconds."""
        ttft_s = first_s - arrival_s
        tpot_s = (last_s - first_s) / (num_tokens - 1) if num_tokens > 1 else 0.0
        self.ttft.append(ttft_s)
        self.e2e.append(last_s - arrival_s)
        if num_tokens > 1:
            self.tpot.append(tpot_s)
        self.output_tokens += num_tokens
        self.num_good += ttft_s <= slo[0] and tpot_s <= slo[1]
