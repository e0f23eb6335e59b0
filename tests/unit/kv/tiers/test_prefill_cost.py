from __future__ import annotations

import pytest

from headrace.core.request import SeqId
from headrace.core.step import Row, Step
from headrace.kv.tiers import PrefillCost


def step(*rows: tuple[int, int]) -> Step:
    return Step(0, tuple(Row(SeqId(i), start, [0] * count, (), None) for i, (start, count) in enumerate(rows)))


def test_cost_of_tokens_and_of_their_context_is_learned_from_steps() -> None:
    cost = PrefillCost()
    assert not cost.is_known
    assert cost.recompute_s(0, 100) == 100 * cost.recompute_s(0, 1) > 0.0
    for start, count in [(0, 64), (64, 128), (512, 256), (0, 256), (900, 16), (300, 32)]:
        pairs = count * (start + count / 2)
        cost.note(step((start, count)), 2e-3 + 1e-4 * count + 1e-7 * pairs)
    assert cost.is_known
    assert cost.recompute_s(100, 50) == pytest.approx(1e-4 * 50 + 1e-7 * 50 * 125, rel=1e-3)


def test_steps_that_only_decode_teach_nothing() -> None:
    cost = PrefillCost()
    for _ in range(5):
        cost.note(step((10, 1), (20, 1)), 1.0)
    assert not cost.is_known


def test_a_step_that_only_copies_teaches_nothing() -> None:
    cost = PrefillCost()
    cost.note(step(), 1e-3)
    assert cost.recompute_s(0, 2) == 2 * PrefillCost().recompute_s(0, 1)


def test_steps_of_one_size_give_their_mean_and_never_a_negative_cost() -> None:
    cost = PrefillCost()
    for elapsed_s in (0.2, 0.1, 0.3):
        cost.note(step((0, 100)), elapsed_s)
    assert 0.001 < cost.recompute_s(0, 1) < 0.003
    shrinking = PrefillCost()
    for count, elapsed_s in ((100, 0.1), (200, 0.05)):
        shrinking.note(step((0, count)), elapsed_s)
    assert shrinking.recompute_s(0, 10) > 0
