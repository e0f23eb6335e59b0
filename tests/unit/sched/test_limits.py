from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.kv import CostOrder
from headrace.sched import SchedulerLimits

LIMITS: dict[str, Any] = {"max_num_seqs": 1, "max_step_tokens": 1, "max_context": 1, "max_waiting": 1}


@pytest.mark.parametrize("name", [*LIMITS, "chunk_tokens"])
def test_a_limit_below_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        SchedulerLimits(**{**LIMITS, name: 0}).check()


def test_least_recently_used_needs_no_order_of_its_own() -> None:
    SchedulerLimits(**LIMITS).check()
    assert SchedulerLimits(**LIMITS).eviction_order(8, 4) is None
    assert isinstance(SchedulerLimits(**LIMITS, prefix_policy="cost").eviction_order(8, 4), CostOrder)


def test_prompts_get_more_of_a_step_the_more_sequences_decode_beside_them() -> None:
    limits = SchedulerLimits(**{**LIMITS, "max_num_seqs": 64, "max_step_tokens": 512, "chunk_tokens": 256})
    assert [limits.prompt_tokens(n) for n in (0, 1, 16, 24, 32)] == [512, 256, 256, 384, 512]
    even = msgspec.structs.replace(limits, chunk_grows=False)
    assert [even.prompt_tokens(n) for n in (0, 1, 16, 32, 64)] == [512, 256, 256, 256, 256]
    free = SchedulerLimits(**{**LIMITS, "max_num_seqs": 64, "max_step_tokens": 512})
    assert {free.prompt_tokens(n) for n in (0, 1, 64)} == {512}
