"""Rows that were made before their token was known."""

from __future__ import annotations

import pytest

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Sample, Step, StepResult
from headrace.executor.ahead import Ahead


def row(seq_id: int, *, is_ahead: bool = False) -> Row:
    return Row(SeqId(seq_id), 3, (0,), (0,), SamplingParams(), is_ahead=is_ahead)


def test_a_row_gets_the_token_of_its_own_sequence_wherever_that_stood() -> None:
    ahead = Ahead()
    ahead.note(Step(0, (row(1), row(2))), StepResult(0, (Sample(11), Sample(22))))
    step = ahead.fill(Step(1, (row(2, is_ahead=True), row(7), row(1, is_ahead=True))))
    assert [tuple(each.tokens) for each in step.rows] == [(22,), (0,), (11,)]


def test_a_row_of_a_failed_sequence_keeps_its_0() -> None:
    ahead = Ahead()
    ahead.note(Step(0, (row(1),)), StepResult(0, (None,), failures={SeqId(1): "NaN"}))
    assert ahead.fill(Step(1, (row(1, is_ahead=True),))).rows[0].tokens == (0,)


def test_a_step_with_all_its_tokens_is_left_as_it_is() -> None:
    step = Step(1, (row(1),))
    assert Ahead().fill(step) is step


def test_a_row_ahead_of_a_step_that_it_was_not_in_is_refused() -> None:
    ahead = Ahead()
    ahead.note(Step(0, (row(1),)), StepResult(0, (Sample(11),)))
    with pytest.raises(ValueError, match="sequence 2 is ahead of a step that it was not in"):
        ahead.fill(Step(1, (row(2, is_ahead=True),)))
