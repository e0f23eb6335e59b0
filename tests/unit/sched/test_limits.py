from __future__ import annotations

from typing import Any

import pytest

from headrace.kv import CostOrder
from headrace.sched import SchedulerLimits

LIMITS: dict[str, Any] = {"max_num_seqs": 1, "max_step_tokens": 1, "max_context": 1, "max_waiting": 1}


@pytest.mark.parametrize("name", [*LIMITS, "attention_parity"])
def test_a_limit_below_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        SchedulerLimits(**{**LIMITS, name: 0}).check()


def test_least_recently_used_needs_no_order_of_its_own() -> None:
    SchedulerLimits(**LIMITS).check()
    assert SchedulerLimits(**LIMITS).eviction_order(8, 4) is None
    assert isinstance(SchedulerLimits(**LIMITS, prefix_policy="cost").eviction_order(8, 4), CostOrder)
