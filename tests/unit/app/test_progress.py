"""Readiness is told from steps."""

from __future__ import annotations

import msgspec

from headrace.app.progress import STALL_S, Progress
from headrace.core.stats import EngineSnapshot
from headrace.testing import VirtualClock

IDLE = EngineSnapshot(
    num_running=0, num_waiting=0, num_blocks=1, num_free_blocks=1, num_steps=0, num_preemptions=0, prompt_tokens=0,
    generated_tokens=0, recomputed_tokens=0, last_step_s=None, is_dead=False,
)  # fmt: skip


def test_only_work_without_steps_is_a_stall() -> None:
    clock, now = VirtualClock(), {"snapshot": IDLE}
    progress = Progress("m", lambda: now["snapshot"], clock)
    for num_steps, num_running, is_stalled in [
        (0, 0, False),  # idle
        (0, 1, False),  # work has just come
        (0, 1, True),  # and nothing has moved since
        (1, 1, False),  # a step
        (1, 0, False),  # idle again
        (1, 1, False),
        (2, 1, False),
        (2, 1, True),
    ]:
        now["snapshot"] = msgspec.structs.replace(IDLE, num_steps=num_steps, num_running=num_running)
        assert (progress.problem() is not None) == is_stalled, (num_steps, num_running)
        clock.advance(STALL_S)
