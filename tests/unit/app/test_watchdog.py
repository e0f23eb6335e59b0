"""The watchdog speaks once, and ends what does not end by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from headrace.app.watchdog import Watchdog
from headrace.core.health import HealthState, LiveSequence, SequencePhase
from headrace.core.request import RequestId, SeqId
from headrace.core.stats import EngineSnapshot, TierStats
from headrace.engine.health import EngineFacts, HealthLimits
from headrace.testing import VirtualClock

SNAPSHOT = EngineSnapshot(
    num_running=1, num_waiting=0, num_blocks=1, num_free_blocks=0, num_steps=3, num_preemptions=0, prompt_tokens=4,
    generated_tokens=2, recomputed_tokens=0, last_step_s=None, is_dead=False, phase="execute",
)  # fmt: skip
SEQUENCE = LiveSequence(SeqId(7), SequencePhase.DECODE, (6, 6))


class Kennel:
    """A watchdog, the engine it watches, and what it has said."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.live = [SEQUENCE]
        self.snapshot = SNAPSHOT
        self.stalls: list[str] = []
        self.deaths: list[str] = []
        self.exits: list[int] = []
        self.dog = Watchdog(
            HealthLimits(stall_s=10, stuck_s=30, exit_s=20),
            self.clock,
            on_stall=self.stalls.append,
            on_dead=self.deaths.append,
            leave=self.exits.append,
        )
        self.dog.add("m", self.facts)

    def facts(self) -> EngineFacts:
        return EngineFacts(
            snapshot=self.snapshot,
            live=self.live,
            request_id=lambda seq_id: RequestId(f"chatcmpl-{seq_id}"),
            warm_s=0.1,
        )

    def look(self, after_s: float) -> None:
        self.clock.advance(after_s)
        self.dog.look()


class Loop:
    """An event loop that answers when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def call_soon_threadsafe(self, call: Any) -> None:
        self.calls.append(call)


def test_a_stall_is_logged_once_with_the_request_and_the_phase(caplog: pytest.LogCaptureFixture) -> None:
    kennel = Kennel()
    for _ in range(6):
        kennel.look(4)
    (record,) = caplog.records
    assert "chatcmpl-7 (decode, 12.0 s)" in record.getMessage()
    assert "'execute' of step 2" in record.getMessage()
    assert kennel.stalls == ["m"]
    kennel.live = []
    kennel.look(1)
    assert kennel.dog.health("m").state is HealthState.READY


def test_a_place_that_hangs_is_named_once_while_it_does(caplog: pytest.LogCaptureFixture) -> None:
    kennel = Kennel()
    kennel.live = []
    for seconds in (0.0, 6.0, 8.0, 10.0, 0.0, 0.0, 5.5):
        tier = TierStats(name="disk", is_up=not seconds, silent_s=seconds)
        kennel.snapshot = msgspec.structs.replace(SNAPSHOT, tiers=(tier,))
        kennel.look(0.1)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "model 'm': KV tier 'disk' has not answered for 6.0 s; serving goes on without it",
        "model 'm': KV tier 'disk' has not answered for 5.5 s; serving goes on without it",
    ]
    assert kennel.dog.health("m").state is HealthState.DEGRADED


def test_the_end_is_told_once_and_forced_when_nobody_hears() -> None:
    kennel = Kennel()
    for _ in range(10):
        kennel.look(4)
    (reason,) = kennel.deaths
    assert "'m'" in reason
    assert "chatcmpl-7" in reason
    assert not kennel.exits
    kennel.look(10)
    assert kennel.exits == [1]


def beside_a_loop() -> tuple[Kennel, Loop]:
    """A dog that watches a loop and no engine; its thread is stopped, the tests look for themselves."""
    kennel, loop = Kennel(), Loop()
    kennel.live = []
    watched: Any = loop
    kennel.dog.start(watched)
    kennel.dog.stop()
    return kennel, loop


def test_an_event_loop_that_hangs_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    kennel, loop = beside_a_loop()
    kennel.look(1)
    loop.calls.pop()()
    kennel.look(100)
    assert not caplog.records
    kennel.look(11)
    kennel.look(11)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert not kennel.deaths
    kennel.look(11)
    assert "event loop" in kennel.deaths[0]


def test_an_event_loop_that_was_frozen_with_its_process_may_still_answer() -> None:
    kennel, loop = beside_a_loop()
    kennel.look(1)
    kennel.look(10_000)
    loop.calls.pop()()
    for _ in range(3):
        kennel.look(10)
        loop.calls.pop()()
    assert not kennel.deaths


def test_the_thread_looks_by_itself() -> None:
    async def main() -> None:
        said = asyncio.Event()
        loop = asyncio.get_running_loop()
        dog = Watchdog(
            HealthLimits(stall_s=0.02, stuck_s=30, exit_s=0.02),
            VirtualClock(),
            on_stall=lambda name: None,
            on_dead=lambda reason: loop.call_soon_threadsafe(said.set),
        )
        dog.add("m", lambda: EngineFacts(snapshot=SNAPSHOT, live=[], request_id=lambda _: None, warm_s=0, fatal="lost"))
        dog.start(loop)
        try:
            async with asyncio.timeout(60):
                await said.wait()
        finally:
            dog.stop()

    asyncio.run(main())
