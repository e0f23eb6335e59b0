"""A trace through the real engine: its thread, loop, scheduler and cache; only the executor and the clock are made up.

Owns one simulation at a time. Everything after the start happens on the engine's thread, so a simulation is the same
each time: the predicted executor moves the clock by a step's time and then hands in who has arrived meanwhile; when
the last request has ended, the clock jumps to the next arrival. Nobody sleeps or waits.

    engine thread:  launch ─► result: clock += predicted, arrivals ─► Engine.submit ─► commit ─► next step
                    deliver: events ─► latencies; nothing live: clock = next arrival; nothing to come: Engine.stop
"""

from __future__ import annotations

import time

import msgspec

from headrace.core.errors import HeadraceError
from headrace.core.request import SamplingParams, SeqId
from headrace.engine import Engine, StepReport
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.sim.executor import PredictedExecutor
from headrace.sim.report import Latencies, Quantiles, SimReport
from headrace.sim.step_times import StepTimes
from headrace.sim.trace import Trace
from headrace.testing import VirtualClock

_GREEDY = SamplingParams(temperature=0.0)


class SimShape(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated besides the trace.

    slo_ttft_s, slo_tpot_s  a request that is slower does not count as good
    cache_share_percent     what `num_blocks` was derived from, if anything
    """

    limits: SchedulerLimits
    num_blocks: int
    block_size: int
    times: StepTimes
    slo_ttft_s: float = 2.0
    slo_tpot_s: float = 0.1
    cache_share_percent: float | None = None


def simulate(trace: Trace, shape: SimShape) -> SimReport:
    """Run a trace to its end and sum it up. Raises what the engine fails with."""
    return _Simulation(trace, shape).run()


class _Live:
    """A request on its way."""

    __slots__ = ("arrival_s", "first_s", "last_s", "num_tokens")

    def __init__(self, arrival_s: float) -> None:
        self.arrival_s = arrival_s
        self.first_s = 0.0
        self.last_s = 0.0
        self.num_tokens = 0


class _Simulation:
    def __init__(self, trace: Trace, shape: SimShape) -> None:
        self._trace = trace
        self._shape = shape
        self._clock = VirtualClock()
        self._executor = PredictedExecutor(shape.num_blocks, shape.block_size, shape.times, self._clock, self._hand_in)
        self._scheduler = Scheduler(BlockPool(shape.num_blocks), shape.block_size, shape.limits)
        self._engine = Engine(self._scheduler, self._executor, self._clock)
        self._next = 0  # arrival
        self._live: dict[SeqId, _Live] = {}
        self._latencies = Latencies()
        self._num_refused = 0

    def run(self) -> SimReport:
        began = time.perf_counter()
        self._skip_to_arrival()
        has_none = (
            not self._live
        )  # every request was refused at the door; from the start on the engine's thread decides
        self._engine.start(self._deliver)
        if has_none:
            self._engine.stop()
        self._engine.dead.result()
        self._scheduler.check()
        return self._report(time.perf_counter() - began)

    def _hand_in(self, now: float) -> None:
        """Submit all requests that have arrived by `now`."""
        arrivals = self._trace.arrivals
        while self._next < len(arrivals) and arrivals[self._next].at_s <= now:
            arrival = arrivals[self._next]
            seq_id = SeqId(self._next)
            self._next += 1
            sequence = Sequence(seq_id, arrival.prompt(), _GREEDY, max_tokens=arrival.output_len)
            try:
                self._engine.submit([sequence])
            except HeadraceError:
                self._num_refused += 1
            else:
                self._live[seq_id] = _Live(arrival.at_s)

    def _skip_to_arrival(self) -> None:
        """Let time pass until a request is in; nothing is live."""
        arrivals = self._trace.arrivals
        while not self._live and self._next < len(arrivals):
            self._clock.advance(max(arrivals[self._next].at_s - self._clock.now(), 0.0))
            self._hand_in(self._clock.now())

    def _deliver(self, report: StepReport) -> None:
        """Take in a step's events; go on when all is done."""
        if not self._live:
            return  # the report of the stop
        slo = (self._shape.slo_ttft_s, self._shape.slo_tpot_s)
        for event in report.events:
            live = self._live[event.seq_id]
            if event.sample is not None:
                if live.num_tokens:
                    self._latencies.note_gap(report.now - live.last_s)
                else:
                    live.first_s = report.now
                live.num_tokens += 1
                live.last_s = report.now
            if event.finish is not None:
                del self._live[event.seq_id]
                self._latencies.note_end(
                    live.arrival_s, live.first_s or report.now, live.last_s or report.now, live.num_tokens, slo
                )
        if not self._live:
            self._skip_to_arrival()
            if not self._live:
                self._engine.stop()

    def _report(self, wall_s: float) -> SimReport:
        totals, latencies, shape = self._scheduler.totals, self._latencies, self._shape
        duration_s = self._clock.now()
        num_requests, repeated = len(self._trace.arrivals), self._trace.repeated_tokens()
        return SimReport(
            trace=self._trace.name,
            policy=shape.limits.prefix_policy if shape.limits.prefix_cache else "none",
            num_blocks=shape.num_blocks,
            block_size=shape.block_size,
            cache_share_percent=shape.cache_share_percent,
            requests=num_requests,
            completed=len(latencies.e2e),
            refused=self._num_refused,
            duration_s=duration_s,
            steps=self._scheduler.num_steps,
            prompt_tokens=totals.prompt_tokens,
            output_tokens=latencies.output_tokens,
            prompt_tokens_looked_up=totals.prefix_queries,
            prompt_tokens_found=totals.prefix_hits,
            hit_rate=totals.prefix_hits / totals.prefix_queries if totals.prefix_queries else 0.0,
            of_unlimited=totals.prefix_hits / repeated if repeated else 0.0,
            preemptions=totals.num_preemptions,
            recomputed_tokens=totals.recomputed_tokens,
            ttft_ms=Quantiles.of(latencies.ttft),
            itl_ms=Quantiles.of(latencies.itl),
            tpot_ms=Quantiles.of(latencies.tpot),
            e2e_ms=Quantiles.of(latencies.e2e),
            slo_ttft_ms=shape.slo_ttft_s * 1e3,
            slo_tpot_ms=shape.slo_tpot_s * 1e3,
            slo_share=latencies.num_good / num_requests,
            goodput_rps=latencies.num_good / duration_s if duration_s else 0.0,
            utilization=self._executor.busy_s / duration_s if duration_s else 0.0,
            wall_s=wall_s,
        )
