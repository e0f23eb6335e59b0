"""The account of one engine's life: every nanosecond billed once, at the machine's rate.

Owns: how much of the engine's time has been billed, and what ended requests were charged until their stage claims it.
Runs on the network thread.
Invariant: the nano-dollars of all claims and all spans are the cost of the nanoseconds billed so far, exactly: each is
the difference of two costs of one running total.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from headrace.core.request import RequestId
from headrace.core.stats import EngineTime, RequestStats
from headrace.econ import EngineBuild, EngineSpan, MachineRate, cost_of_time

_MOST_UNCLAIMED = 100_000


class Charge(NamedTuple):
    """Of an engine's time: a request's part, and what it cost; None where the machine's rate is not known.

    prompt_ns  of that part: for computing its prompt
    rent_ns    of that part: for the memory of cached tokens that it used; rent_nano: what of the cost was for that
    Times are of the engine's clock, None where the request never got that far.
    """

    engine_ns: int
    machine_nano: int | None
    engine: str | None = None
    prompt_ns: int = 0
    rent_ns: int = 0
    rent_nano: int | None = None
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    paused_s: float = 0.0
    num_preemptions: int = 0


class EngineAccount:
    """Bills one engine."""

    def __init__(
        self,
        model: str,
        rate: MachineRate | None,
        time: Callable[[], EngineTime],
        wall_ns: Callable[[], int],
        build: EngineBuild | None = None,
    ) -> None:
        self.model = model
        self.build = build
        self.engine = f"eng-{secrets.token_hex(6)}"
        self._rate = rate
        self._time = time
        self._wall_ns = wall_ns
        self._billed_ns = 0
        self._forgotten_ns = 0  # of requests that nobody has claimed: the pool's
        self._unclaimed: dict[RequestId, RequestStats] = {}
        self._last = EngineTime(total_ns=0)
        self._last_wall_ns = wall_ns() - time().total_ns
        self._num_spans = 0

    def on_finished(self, stats: RequestStats) -> None:
        """Keep what an ended request was charged, for its stage; beyond a bound the oldest goes to the pool."""
        before = self._unclaimed.get(stats.request_id)
        self._unclaimed[stats.request_id] = stats if before is None else _together(before, stats)
        if len(self._unclaimed) > _MOST_UNCLAIMED:
            self._forgotten_ns += self._unclaimed.pop(next(iter(self._unclaimed))).engine_ns

    def claim(self, request_id: RequestId) -> Charge | None:
        """Bill an ended request, once; None if it never was this engine's."""
        stats = self._unclaimed.pop(request_id, None)
        if stats is None:
            return None
        compute_nano, rent_nano = self._bill(stats.engine_ns - stats.rent_ns), self._bill(stats.rent_ns)
        return Charge(
            engine_ns=stats.engine_ns,
            machine_nano=None if compute_nano is None or rent_nano is None else compute_nano + rent_nano,
            rent_ns=stats.rent_ns,
            rent_nano=rent_nano,
            engine=self.engine,
            prompt_ns=stats.prompt_ns,
            first_scheduled_s=stats.first_scheduled_s,
            first_token_s=stats.first_token_s,
            finished_s=stats.finished_s,
            paused_s=stats.paused_s,
            num_preemptions=stats.num_preemptions,
        )

    def span(self) -> EngineSpan:
        """Book the engine's time since the last span and bill the pool's part of it."""
        now, last = self._time(), self._last
        loading_ns = now.loading_ns - last.loading_ns
        recomputed_ns = now.recomputed_ns - last.recomputed_ns
        forgotten_ns, self._forgotten_ns = self._forgotten_ns, 0
        abandoned_ns = now.abandoned_ns - last.abandoned_ns + forgotten_ns
        idle_ns = now.idle_ns - last.idle_ns
        cached_ns = now.cached_ns - last.cached_ns
        total_ns = now.total_ns - last.total_ns
        from_ns = self._last_wall_ns
        self._last, self._last_wall_ns = now, from_ns + total_ns
        self._num_spans += 1
        return EngineSpan(
            id=f"{self.engine}/{self._num_spans}",
            engine=self.engine,
            model=self.model,
            from_ns=from_ns,
            until_ns=self._last_wall_ns,
            total_ns=total_ns,
            loading_ns=loading_ns,
            requests_ns=now.requests_ns - last.requests_ns - forgotten_ns,
            recomputed_ns=recomputed_ns,
            abandoned_ns=abandoned_ns,
            idle_ns=idle_ns,
            cached_ns=cached_ns,
            cached_nano=self._bill(cached_ns),
            pool_nano=self._bill(loading_ns + recomputed_ns + abandoned_ns + idle_ns),
            nano_per_hour=None if self._rate is None else self._rate.nano_per_hour,
            rate_source=None if self._rate is None else self._rate.source,
        )

    def _bill(self, span_ns: int) -> int | None:
        if self._rate is None:
            return None
        before = cost_of_time(self._billed_ns, self._rate.nano_per_hour)
        self._billed_ns += span_ns
        return cost_of_time(self._billed_ns, self._rate.nano_per_hour) - before


def _together(one: RequestStats, other: RequestStats) -> RequestStats:
    """Sum up two streams of one request: its time begins with the first and ends with the last."""
    starts = [s for s in (one.first_scheduled_s, other.first_scheduled_s) if s is not None]
    firsts = [s for s in (one.first_token_s, other.first_token_s) if s is not None]
    return msgspec.structs.replace(
        one,
        engine_ns=one.engine_ns + other.engine_ns,
        prompt_ns=one.prompt_ns + other.prompt_ns,
        rent_ns=one.rent_ns + other.rent_ns,
        first_scheduled_s=min(starts, default=None),
        first_token_s=min(firsts, default=None),
        finished_s=max(one.finished_s, other.finished_s),
        paused_s=one.paused_s + other.paused_s,
        num_preemptions=one.num_preemptions + other.num_preemptions,
    )
