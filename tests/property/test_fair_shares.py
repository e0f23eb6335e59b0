"""The real scheduler under a flood, on a virtual device: shares, goodput and recovery."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.delta import FinishReason
from headrace.core.errors import Overloaded
from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import SchedulingSettings
from headrace.core.step import Sample, Step, StepResult
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence, Urgency


@dataclass
class Load:
    """Requests of one tenant: how often, how long."""

    tenant: str
    rate: float
    prompt: int = 24
    output: int = 16
    urgency: dict[str, Any] = field(default_factory=dict)


class Device:
    """A scheduler whose steps take 4 ms, 0.2 ms a row and 0.25 ms a prompt token."""

    def __init__(self, max_waiting: int = 400, max_num_seqs: int = 8, num_blocks: int = 300, **policy: Any) -> None:
        limits = SchedulerLimits(
            max_num_seqs=max_num_seqs,
            max_step_tokens=64,
            max_context=256,
            max_waiting=max_waiting,
            policy=SchedulingSettings(**policy),
        )
        self.scheduler = Scheduler(BlockPool(num_blocks), 8, limits)
        self.now = 0.0
        self.sequences: dict[int, Sequence] = {}
        self.first_token_s: dict[int, float] = {}
        self.ends: Counter[FinishReason] = Counter()
        self.num_refused = 0
        self.least_retry_s = float("inf")
        self.computed: Counter[str] = Counter()
        self.most_waiting = 0

    def run(self, loads: list[Load], until_s: float, seed: int = 0) -> None:
        """Poisson arrivals until then; steps as fast as the device makes them."""
        rng = random.Random(seed)
        coming = sorted(
            ((at, index) for index, load in enumerate(loads) for at in _arrivals(rng, load.rate, self.now, until_s)),
            reverse=True,
        )
        while self.now < until_s:
            while coming and coming[-1][0] <= self.now:
                at, index = coming.pop()
                self.submit(loads[index], at, rng)
            if not self.step():
                self.now = coming[-1][0] if coming else until_s

    def submit(self, load: Load, at: float, rng: random.Random) -> None:
        seq_id = len(self.sequences)
        prompt = [seq_id % 251, *(rng.randrange(50) for _ in range(load.prompt - 1))]
        urgency = Urgency(tenant=load.tenant, **load.urgency)
        sequence = Sequence(SeqId(seq_id), prompt, SamplingParams(), max_tokens=load.output, urgency=urgency)
        self.sequences[seq_id] = sequence
        is_refused_unread = False
        try:
            self.scheduler.check_room(urgency, at)
        except Overloaded:
            is_refused_unread = True
        try:
            self.scheduler.check_admission([sequence], at)
            assert not is_refused_unread, "refused at the door, though there is room"
        except Overloaded as refusal:
            self.num_refused += 1
            self.least_retry_s = min(self.least_retry_s, refusal.retry_after_s)
        else:
            self.scheduler.submit(sequence, at)
            self.most_waiting = max(self.most_waiting, self.scheduler.num_waiting)

    def step(self) -> bool:
        for event in self.scheduler.expire(self.now):
            self.ends[FinishReason.EXPIRED] += 1
            assert event.finish is FinishReason.EXPIRED
        step = self.scheduler.schedule(self.now)
        if step is None:
            return False
        elapsed_s = _seconds(step)
        self.now += elapsed_s
        samples = tuple(None if row.sampling is None else Sample(3) for row in step.rows)
        for row in step.rows:
            self.computed[self.sequences[row.seq_id].tenant] += len(row.tokens)
        for event in self.scheduler.commit(step, StepResult(step.step_id, samples, elapsed_s=elapsed_s), self.now):
            self.first_token_s.setdefault(event.seq_id, self.now)
            if event.finish is not None:
                self.ends[event.finish] += 1
        return True


def _seconds(step: Step) -> float:
    return 4e-3 + sum(2e-4 if len(row.tokens) == 1 else 2.5e-4 * len(row.tokens) for row in step.rows)


def _arrivals(rng: random.Random, rate: float, start: float, end: float) -> list[float]:
    times, at = [], start
    while (at := at + rng.expovariate(rate)) < end:
        times.append(at)
    return times


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    prompt=st.integers(4, 60),
    output=st.integers(2, 40),
    flood=st.sampled_from([{}, {"deadline_s": 1e9}, {"priority": 0}]),
)
def test_a_flood_of_ten_times_the_requests_gets_no_more_than_its_share(
    seed: int, prompt: int, output: int, flood: dict[str, Any]
) -> None:
    device = Device(max_waiting=2000, fair_burst_tokens=256)
    rng = random.Random(seed)
    loads = {"flood": Load("flood", 0.0, prompt, output, flood), "light": Load("light", 0.0, 30, 20)}
    # Both always have work waiting; the flood has ten times as much and came first.
    for _ in range(200):
        device.submit(loads["flood"], 0.0, rng)
    for _ in range(20):
        device.submit(loads["light"], 0.0, rng)
    before = Counter(device.computed)
    waiting = {
        name: lambda name=name: sum(s.tenant == name for s in device.scheduler._roster.waiting) for name in loads
    }
    while sum(device.computed.values()) < 12_000:
        assert device.step()
        for name, least in (("flood", 100), ("light", 10)):
            while waiting[name]() < least:
                device.submit(loads[name], device.now, rng)
    device.scheduler.check()
    shares = device.computed - before
    assert shares["flood"] <= 1.2 * shares["light"]
    assert shares["light"] <= 1.2 * shares["flood"]


def test_weights_are_the_ratio_of_the_shares() -> None:
    device = Device(max_waiting=2000, fair_burst_tokens=256, tenant_weights={"gold": 3.0})
    rng = random.Random(5)
    for _ in range(500):
        for name in ("gold", "plain"):
            device.submit(Load(name, 0.0), 0.0, rng)
    while sum(device.computed.values()) < 12_000:
        device.step()
    assert device.computed["gold"] / device.computed["plain"] == pytest.approx(3.0, rel=0.1)


def test_at_three_times_the_capacity_what_is_let_in_keeps_its_promise_and_the_queue_stays_short() -> None:
    device = Device(max_wait_s=0.5)
    # 8 places, 16 tokens and about 7 ms a step: some 55 requests a second at best.
    device.run([Load("", 30.0)], 4.0)
    assert device.num_refused == 0
    began = device.now
    num_before = len(device.sequences)
    device.run([Load("", 150.0)], began + 20.0)
    admitted = [
        (seq_id, sequence)
        for seq_id, sequence in device.sequences.items()
        if seq_id >= num_before and seq_id in device.first_token_s
    ]
    on_time = sum(device.first_token_s[seq_id] - sequence.queued_s <= 1.0 for seq_id, sequence in admitted)
    assert device.num_refused > 1000
    assert device.least_retry_s >= 1.0
    assert on_time >= 0.95 * len(admitted)
    assert device.most_waiting < 60
    assert len(admitted) / 20.0 > 40.0  # refusing does not leave the device idle
    while device.step():
        pass
    assert device.now - began - 20.0 < 2.0
    device.scheduler.check()


def test_the_light_tenant_is_served_as_if_the_flood_were_not_there() -> None:
    device = Device(max_wait_s=2.0, fair_burst_tokens=256)
    device.run([Load("flood", 150.0), Load("light", 3.0)], 15.0)
    light = [
        device.first_token_s[seq_id] - sequence.queued_s
        for seq_id, sequence in device.sequences.items()
        if sequence.tenant == "light" and seq_id in device.first_token_s
    ]
    sent = sum(sequence.tenant == "light" for sequence in device.sequences.values())
    assert len(light) >= 0.95 * sent
    assert sorted(light)[int(0.95 * len(light))] < 0.7


def test_background_fills_what_is_left_and_costs_the_others_little() -> None:
    alone = Device()
    alone.run([Load("", 20.0)], 10.0)
    shared = Device()
    shared.run([Load("", 20.0), Load("", 60.0, urgency={"is_background": True})], 10.0)

    def p90(device: Device) -> float:
        waits = sorted(
            at - device.sequences[seq_id].queued_s
            for seq_id, at in device.first_token_s.items()
            if not device.sequences[seq_id].is_background
        )
        return waits[int(0.9 * len(waits))]

    done = sum(device_id in shared.first_token_s for device_id, s in shared.sequences.items() if s.is_background)
    assert done > 50
    assert p90(shared) < 1.5 * p90(alone) + 0.01
