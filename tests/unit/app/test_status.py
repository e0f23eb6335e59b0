"""The server's state is the worst of what is known."""

from __future__ import annotations

from headrace.app.status import ServerStatus
from headrace.app.watchdog import Watchdog
from headrace.core.health import HealthState
from headrace.core.stats import EngineSnapshot
from headrace.engine.health import EngineFacts, HealthLimits
from headrace.testing import VirtualClock

SNAPSHOT = EngineSnapshot(
    num_running=0, num_waiting=0, num_blocks=1, num_free_blocks=1, num_steps=0, num_preemptions=0, prompt_tokens=0,
    generated_tokens=0, recomputed_tokens=0, last_step_s=None, is_dead=False,
)  # fmt: skip


def test_a_start_tells_phase_model_and_share() -> None:
    clock = VirtualClock()
    dog = Watchdog(HealthLimits(), clock, on_stall=lambda name: None, on_dead=lambda reason: None)
    status = ServerStatus(clock, dog, 2)
    status.enter("load", "m")
    status.advance(0.25)
    clock.advance(3)
    health = status.health()
    assert health.state is HealthState.STARTING
    assert health.start is not None
    assert (health.start.phase, health.start.model, health.start.done) == ("load", "m", 0.25)
    assert (health.start.models_ready, health.start.models, health.start.elapsed_s) == (0, 2, 3)
    assert status.loading() == "the server is starting (load 25% of m)"
    status.started()
    assert status.health().state is HealthState.READY
    assert status.loading() is None


def test_the_worst_model_speaks_for_the_server() -> None:
    clock = VirtualClock()
    dog = Watchdog(HealthLimits(), clock, on_stall=lambda name: None, on_dead=lambda reason: None)
    status = ServerStatus(clock, dog, 2)
    fatal: dict[str, str | None] = {"a": None, "b": None}
    for name in fatal:
        dog.add(
            name,
            lambda name=name: EngineFacts(  # type: ignore[misc]
                snapshot=SNAPSHOT, live=[], request_id=lambda _: None, warm_s=0.1, fatal=fatal[name]
            ),
        )
    status.started()
    assert status.health().state is HealthState.READY
    status.drain()
    assert status.health().state is HealthState.DRAINING
    fatal["b"] = "device lost"
    health = status.health()
    assert (health.state, health.reason) == (HealthState.DEAD, "b: device lost")
    assert health.models["a"].state is HealthState.READY
    status.die("first")
    status.die("second")
    assert status.health().reason == "first"
