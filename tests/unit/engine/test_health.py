"""Health is told from steps and tokens, on a clock that moves when told to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.core.health import DownPlace, HealthState, LiveSequence, ModelHealth, SequencePhase
from headrace.core.request import RequestId, SeqId
from headrace.core.stats import EngineSnapshot, TierStats
from headrace.engine.health import EngineFacts, HealthJudge, HealthLimits
from headrace.testing import VirtualClock

IDLE = EngineSnapshot(
    num_running=0, num_waiting=0, num_blocks=1, num_free_blocks=1, num_steps=0, num_preemptions=0, prompt_tokens=0,
    generated_tokens=0, recomputed_tokens=0, last_step_s=None, is_dead=False,
)  # fmt: skip
LIMITS = HealthLimits(stall_s=10.0, stuck_s=30.0, exit_s=20.0, warm_up_s=50.0)


class World:
    """One engine, faked: its last step, its live sequences."""

    def __init__(self) -> None:
        self.clock = VirtualClock(100.0)
        self.judge = HealthJudge(LIMITS, self.clock)
        self.snapshot = IDLE
        self.live: dict[int, LiveSequence] = {}
        self.facts: dict[str, Any] = {"warm_s": 0.1}

    def step(self, *seq_ids: int) -> None:
        """End a step that computed one token for each of the sequences."""
        for seq_id in seq_ids:
            sequence = self.live[seq_id]
            computed, tokens = sequence.mark
            self.live[seq_id] = msgspec.structs.replace(
                sequence, mark=(computed + 1, tokens + 1), phase=SequencePhase.DECODE
            )
        self.snapshot = msgspec.structs.replace(
            self.snapshot,
            num_steps=self.snapshot.num_steps + 1,
            generated_tokens=self.snapshot.generated_tokens + len(seq_ids),
            last_step_s=self.clock.now(),
        )

    def arrive(self, seq_id: int) -> None:
        self.live[seq_id] = LiveSequence(SeqId(seq_id), SequencePhase.QUEUE, (0, 5), self.clock.now())

    def look(self, after_s: float = 0.0) -> ModelHealth:
        self.clock.advance(after_s)
        facts = EngineFacts(
            snapshot=self.snapshot,
            live=list(self.live.values()),
            request_id=lambda seq_id: RequestId(f"r{seq_id}"),
            **self.facts,
        )
        return self.judge.judge(facts)


@pytest.fixture
def world() -> World:
    return World()


def test_an_engine_is_starting_until_it_is_warm(world: World) -> None:
    world.facts["warm_s"] = None
    assert world.look().state is HealthState.STARTING
    world.facts["warm_s"] = 0.1
    assert world.look().state is HealthState.READY


def test_a_warm_up_that_hangs_is_given_up_with_what_to_do(world: World) -> None:
    world.facts["warm_s"] = None
    assert world.look(1e4).state is HealthState.STARTING  # loading has no limit of its own
    world.snapshot = msgspec.structs.replace(IDLE, phase="warm")
    assert world.look().state is HealthState.STARTING
    assert world.look(49.0).state is HealthState.STARTING
    assert world.look(2.0).state is HealthState.STALLED
    dead = world.look(5.0)
    assert dead.state is HealthState.DEAD
    assert "for 56.0 s, the limit is 50" in (dead.reason or "")
    assert "raise health.warm_up_s" in (dead.reason or "")


def test_a_process_that_was_frozen_while_it_warmed_up_gets_another_look(world: World) -> None:
    world.facts["warm_s"] = None
    world.snapshot = msgspec.structs.replace(IDLE, phase="warm")
    world.look()
    assert world.look(1e6).state is HealthState.STALLED
    world.facts["warm_s"] = 0.1
    assert world.look(4.0).state is HealthState.READY


def test_idleness_is_never_a_stall(world: World) -> None:
    world.arrive(1)
    world.step(1)
    world.live.clear()
    assert world.look().state is HealthState.READY
    assert world.look(1e6).state is HealthState.READY
    world.arrive(2)
    assert world.look().state is HealthState.READY  # the last step is long ago, the work is not


def test_work_without_steps_is_a_stall_that_names_the_requests_and_the_phase(world: World) -> None:
    world.arrive(1)
    world.step(1)
    world.snapshot = msgspec.structs.replace(world.snapshot, phase="execute", step_began_s=world.clock.now())
    world.look()
    assert world.look(9.9).state is HealthState.READY
    health = world.look(0.2)
    assert health.state is HealthState.STALLED
    assert "'execute'" in (health.reason or "")
    assert [(stuck.request_id, stuck.phase) for stuck in health.stuck] == [("r1", SequencePhase.DECODE)]
    assert health.step_age_s == pytest.approx(10.1)


def test_one_step_ends_a_stall(world: World) -> None:
    world.arrive(1)
    world.look()
    assert world.look(15).state is HealthState.STALLED
    world.step(1)
    assert world.look().state is HealthState.READY
    assert world.look(9).state is HealthState.READY


def test_a_stall_that_lasts_is_final(world: World) -> None:
    world.arrive(1)
    world.look()
    assert world.look(11).state is HealthState.STALLED
    assert world.look(19).state is HealthState.STALLED
    assert world.look(1).state is HealthState.DEAD
    world.step(1)
    assert world.look().state is HealthState.DEAD


def test_a_process_that_was_frozen_gets_a_second_look(world: World) -> None:
    world.arrive(1)
    world.look()
    assert world.look(1e4).state is HealthState.STALLED
    world.step(1)
    assert world.look(1).state is HealthState.READY


def test_slow_machines_get_more_time(world: World) -> None:
    world.facts["warm_s"] = 2.0
    world.arrive(1)
    world.look()
    assert world.look(39).state is HealthState.READY
    assert world.look(1).state is HealthState.STALLED


def test_a_request_that_stands_still_while_others_go_on_is_named(world: World) -> None:
    world.arrive(1)
    world.arrive(2)
    world.step(1, 2)
    for _ in range(7):
        world.look(5)
        world.step(2)
    health = world.look()
    assert health.state is HealthState.DEGRADED
    assert [stuck.request_id for stuck in health.stuck] == ["r1"]
    assert health.state.takes_requests
    world.step(1)
    assert world.look().state is HealthState.READY


def test_waiting_counts_from_arrival_and_the_oldest_is_told(world: World) -> None:
    world.arrive(1)
    world.clock.advance(3)
    world.arrive(2)
    world.step()
    health = world.look(4)
    assert health.oldest_waiting_s == pytest.approx(7)
    assert health.state is HealthState.READY


def test_draining_and_death_are_told_as_they_are(world: World) -> None:
    world.facts["is_draining"] = True
    assert world.look().state is HealthState.DRAINING
    world.facts["fatal"] = "device lost"
    health = world.look()
    assert (health.state, health.reason) == (HealthState.DEAD, "device lost")


def test_choices_of_one_request_are_one_stuck_request_and_the_list_is_bounded(world: World) -> None:
    for seq_id in range(40):
        world.arrive(seq_id)
    world.look()
    health = world.look(11)
    assert (health.num_stuck, len(health.stuck)) == (40, 16)


def test_a_place_that_fails_or_hangs_is_named_while_it_does_and_hides_nothing_worse(world: World) -> None:
    def have(*tiers: TierStats) -> None:
        world.snapshot = msgspec.structs.replace(world.snapshot, tiers=tiers)

    have(TierStats(name="ram"), TierStats(name="disk", is_up=False, silent_s=7.25), TierStats(name="redis"))
    health = world.look()
    assert (health.state, health.places_down) == (HealthState.DEGRADED, (DownPlace("disk", 7.25),))
    assert health.reason == "KV tier 'disk' has not answered for 7.2 s; serving goes on"
    have(TierStats(name="ram"), TierStats(name="redis", is_up=False))
    assert "'redis' fails" in (world.look().reason or "")
    have(TierStats(name="ram"), TierStats(name="disk", is_up=False, is_full=True), TierStats(name="redis", is_up=False))
    assert "'disk' is full; KV tier 'redis' fails" in (world.look().reason or "")
    world.arrive(1)
    world.look()
    assert world.look(after_s=11.0).state is HealthState.STALLED
    world.live.clear()
    have(TierStats(name="ram"), TierStats(name="redis"))
    assert world.look().state is HealthState.READY
