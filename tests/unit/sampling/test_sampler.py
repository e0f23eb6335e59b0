from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Sample
from headrace.sampling import sample_rows, score_token, uniform


def row(num_output: int = 0, history: Sequence[int] | None = None, banned: tuple[int, ...] = (), **params: Any) -> Row:
    prompt_len = 0 if history is None else len(history) - num_output
    sampling = SamplingParams(**params)
    return Row(SeqId(1), 4, [3], (0,), sampling, num_output, prompt_len, history, banned)


def draw(logits: Sequence[float], **fields: Any) -> int:
    (sample,) = sample_rows(np.array([logits], dtype=np.float32), [row(**fields)])
    assert isinstance(sample, Sample)
    return sample.token_id


def by_the_book(logits: Sequence[float], params: SamplingParams, num_output: int) -> int:
    """The documented rules, step by step over Python lists, sorting everything."""
    z = [float(np.float32(x)) for x in logits]
    ranked = sorted(range(len(z)), key=lambda i: (-z[i], i))
    if params.temperature == 0:
        return ranked[0]
    weight = {i: math.exp((z[i] - z[ranked[0]]) / params.temperature) for i in ranked}
    if params.top_k:
        ranked = ranked[: params.top_k]
    if params.typical_p < 1:
        total = sum(weight[i] for i in ranked)
        p = {i: weight[i] / total for i in ranked}
        entropy = -sum(p[i] * math.log(p[i]) for i in ranked if p[i] > 0)
        order = sorted(ranked, key=lambda i: abs(-math.log(p[i]) - entropy) if p[i] > 0 else math.inf)
        ranked = [i for i in ranked if i in _prefix(order, weight, params.typical_p)]
    if params.top_p < 1:
        ranked = _prefix(ranked, weight, params.top_p)
    ranked = [i for i in ranked if weight[i] >= params.min_p * weight[ranked[0]]]
    target = uniform(params.seed, num_output) * sum(weight[i] for i in ranked)
    running = 0.0
    for i in ranked:
        running += weight[i]
        if running > target:
            return i
    return ranked[-1]


def _prefix(order: list[int], weight: dict[int, float], share: float) -> list[int]:
    total, running = sum(weight[i] for i in order), 0.0
    for count, i in enumerate(order, 1):
        running += weight[i]
        if running >= share * total:
            return order[:count]
    return order


@settings(max_examples=200, deadline=None)
@given(
    # Logits from a coarse grid give many ties; shares off the grid keep rounding out of the comparison.
    logits=st.lists(st.integers(-20, 20).map(lambda k: k / 4), min_size=1, max_size=40),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.integers(0, 45),
    top_p=st.sampled_from([1.0, 0.9137, 0.4231]),
    typical_p=st.sampled_from([1.0, 0.9313, 0.3717]),
    min_p=st.sampled_from([0.0, 0.0713, 0.5119]),
    seed=st.integers(-(2**63), 2**64 - 1),
    num_output=st.integers(0, 1000),
)
def test_a_draw_follows_the_documented_rules(logits: list[float], num_output: int, **fields: Any) -> None:
    assert draw(logits, num_output=num_output, **fields) == by_the_book(logits, SamplingParams(**fields), num_output)


@pytest.mark.parametrize(
    "filters",
    [{}, {"top_p": 0.9137}, {"min_p": 0.0021}, {"top_p": 0.9997}, {"temperature": 30.0}, {"top_k": 900}],
    ids=str,
)
def test_a_large_vocabulary_gives_the_same_draws_as_sorting_all_of_it(filters: dict[str, Any]) -> None:
    logits = np.random.default_rng(5).normal(0, 3, 3000).astype(np.float32)
    for seed in range(25):
        params = SamplingParams(seed=seed, **filters)
        assert draw(logits.tolist(), seed=seed, **filters) == by_the_book(logits.tolist(), params, 0)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.85}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"min_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),
        ({"banned": (0,)}, [0, 3 / 6, 2 / 6, 1 / 6]),
        ({"logit_bias": ((3, math.log(4)),)}, [4 / 13, 3 / 13, 2 / 13, 4 / 13]),
    ],
    ids=str,
)
def test_draws_have_the_distribution_they_should(filters: dict[str, Any], expected: list[float]) -> None:
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], dtype=np.float32))
    num_draws = 3000
    rows = [row(seed=11, num_output=k, **filters) for k in range(num_draws)]
    samples = sample_rows(np.repeat(logits, num_draws, axis=0), rows)
    counts = np.bincount([s.token_id for s in samples if isinstance(s, Sample)], minlength=4)
    assert all(counts[i] == 0 for i in range(4) if expected[i] == 0)
    chi2 = sum((counts[i] - num_draws * p) ** 2 / (num_draws * p) for i, p in enumerate(expected) if p > 0)
    assert chi2 < 16.3  # 3 degrees of freedom, p = 0.001; the draws are fixed by the seed


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert draw([1.0, 5.0, 5.0, 2.0], temperature=0.0) == 1
    assert draw([1.0, 5.0, 5.0, 2.0], temperature=0.0, banned=(1,)) == 2


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    logits = np.random.default_rng(1).normal(0, 2, (6, 100)).astype(np.float32)
    rows = [row(seed=k, num_output=k, logprobs=3, top_p=0.8 + k / 50) for k in range(6)]
    together = sample_rows(logits, rows)
    assert together == [sample_rows(logits[k : k + 1], [rows[k]])[0] for k in range(6)]
    assert together[::-1] == sample_rows(logits[::-1].copy(), rows[::-1])


def test_penalties_look_at_the_right_part_of_the_history() -> None:
    history = [0, 1, 1, 2, 2]  # prompt 0 1 1, output 2 2
    base = {"temperature": 0.0, "num_output": 2, "history": history}
    assert draw([2.0, 1.0, 2.1, 1.5], **base, presence_penalty=0.2) == 0
    assert draw([2.0, 1.0, 2.1, 1.5], **base, frequency_penalty=0.04) == 2
    assert draw([2.0, 1.0, 2.1, 1.5], **base, frequency_penalty=0.06) == 0
    assert draw([2.0, 1.0, 2.1, 1.5], **base, repetition_penalty=2.0) == 3
    assert draw([-1.0, -2.0, -1.0, -1.5], **base, repetition_penalty=2.0) == 3


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25]], dtype=np.float32))
    plain = row(temperature=0.0, logprobs=2, logit_bias=((2, 50.0),))
    (sample,) = sample_rows(logits, [plain])
    assert isinstance(sample, Sample)
    assert sample.token_id == 2
    assert sample.logprob == pytest.approx(math.log(0.25))
    assert [i for i, _ in sample.top] == [0, 1]
    assert sample.top[0][1] == pytest.approx(math.log(0.5))
    scored = score_token(logits[0], 1, 1)
    assert (scored.token_id, scored.top[0][0]) == (1, 0)
    assert scored.logprob == pytest.approx(math.log(0.25))


def test_logprobs_zero_gives_the_chosen_token_only() -> None:
    (sample,) = sample_rows(np.zeros((1, 4), dtype=np.float32), [row(logprobs=0)])
    assert isinstance(sample, Sample)
    assert sample.logprob == pytest.approx(-math.log(4))
    assert sample.top == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_fail_their_row_only(bad: float) -> None:
    logits = np.zeros((3, 5), dtype=np.float32)
    logits[1, 2] = bad
    first, broken, last = sample_rows(logits, [row(temperature=0.0)] * 3)
    assert isinstance(broken, str)
    assert "not finite at position 4" in broken
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)


def test_a_row_without_a_token_left_says_so() -> None:
    (reason,) = sample_rows(np.zeros((1, 2), dtype=np.float32), [row(banned=(0, 1))])
    assert reason == "every token is banned or biased away"


def test_logits_of_minus_infinity_are_never_drawn() -> None:
    logits = [-math.inf, 0.0, -math.inf, 0.0]
    assert {draw(logits, seed=k, temperature=3.0) for k in range(40)} == {1, 3}
    assert {draw(logits, seed=k, typical_p=0.9) for k in range(40)} <= {1, 3}


def test_the_logits_are_left_as_they_were() -> None:
    logits = np.random.default_rng(2).normal(size=(1, 50)).astype(np.float32)
    before = logits.copy()
    sample_rows(logits, [row(num_output=1, history=[3, 4], repetition_penalty=1.5, banned=(9,))])
    np.testing.assert_array_equal(logits, before)
