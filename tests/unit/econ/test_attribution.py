"""A step's time is divided exactly, and by causes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.econ import AttributionPolicy, StepCosts, StepWork, attribute, divide

COSTS = StepCosts(shared=1_000, per_prompt_token=10, per_pair=1, per_decode_token=20, per_kv_token=2)


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**18), min_size=1, max_size=300))
def test_the_parts_add_up_and_none_is_off_by_more_than_one(total: int, weights: list[int]) -> None:
    parts = divide(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    if whole:
        assert all(abs(part * whole - total * weight) < whole for part, weight in zip(parts, weights, strict=True))


def test_among_nobody_nothing_can_be_divided() -> None:
    with pytest.raises(ValueError, match="among nobody"):
        divide(1, [])


@st.composite
def works(draw: st.DrawFn) -> StepWork:
    num_tokens = draw(st.integers(1, 5_000))
    return StepWork(draw(st.integers(0, 10**6)), num_tokens, draw(st.integers(0, num_tokens)), draw(st.booleans()))


@given(st.integers(0, 10**12), st.lists(works(), max_size=64), st.sampled_from(AttributionPolicy))
def test_members_and_pool_sum_to_the_wall_time(
    wall_ns: int, members: list[StepWork], policy: AttributionPolicy
) -> None:
    charges = attribute(wall_ns, members, COSTS, policy)
    assert sum(charges.members) + charges.pool == wall_ns
    assert all(charge >= 0 for charge in charges.members)
    assert charges.pool >= 0


def test_two_equal_members_pay_the_same() -> None:
    work = StepWork(100, 1, samples=True)
    assert attribute(1_000, [work, work], COSTS).members == (500, 500)


def test_a_step_for_nobody_falls_to_the_pool() -> None:
    assert attribute(7, [], COSTS).pool == 7


def test_golden_split_of_a_prompt_chunk_beside_a_decode() -> None:
    # 100 prompt tokens at context 0: 100·10 + 1·100·50 = 6,000; a decode at context 240: 20 + 2·240 = 500; seats 500.
    chunk, decode = StepWork(0, 100), StepWork(240, 1, samples=True)
    assert attribute(7_500, [chunk, decode], COSTS).members == (6_500, 1_000)


def test_shared_cost_by_tokens_follows_the_tokens() -> None:
    chunk, decode = StepWork(0, 99), StepWork(0, 1, samples=True)
    seats_only = StepCosts(shared=1_000, per_prompt_token=0, per_decode_token=0)
    assert attribute(100, [chunk, decode], seats_only, AttributionPolicy.TOKENS).members == (99, 1)
    assert attribute(100, [chunk, decode], seats_only).members == (50, 50)


def test_tokens_computed_again_are_paid_by_the_pool() -> None:
    whole = attribute(10_000, [StepWork(0, 50, num_again=50)], COSTS)
    assert whole.members == (0,)
    assert whole.pool == 10_000
    beside = attribute(10_000, [StepWork(0, 50, num_again=25), StepWork(10, 1, samples=True)], COSTS)
    assert beside.pool > 0
    assert beside.members[0] > 0
