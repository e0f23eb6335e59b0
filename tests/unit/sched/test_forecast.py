from __future__ import annotations

import pytest

from headrace.core.request import SamplingParams, SeqId
from headrace.sched import Sequence
from headrace.sched.forecast import OutputForecast


def answer(num_output: int, max_tokens: int = 100, prompt_len: int = 10) -> Sequence:
    sequence = Sequence(SeqId(0), range(prompt_len), SamplingParams(), max_tokens=max_tokens)
    sequence.tokens += [0] * num_output
    return sequence


def test_the_share_of_max_tokens_that_answers_reach_is_learned() -> None:
    forecast = OutputForecast(0.5)
    for _ in range(200):
        forecast.note_end(answer(20))
    assert forecast.ratio == pytest.approx(0.2, abs=0.01)
    assert forecast.expected(answer(0)) == 20


def test_a_preemption_widens_the_margin_and_quiet_answers_narrow_it() -> None:
    forecast = OutputForecast(0.2)
    before = forecast.reserved_ratio
    for _ in range(3):
        forecast.note_preemption()
    widened = forecast.reserved_ratio
    assert widened > before + 0.2
    for _ in range(300):
        forecast.note_end(answer(20))
    assert forecast.reserved_ratio == pytest.approx(before, abs=0.02)
    for _ in range(20):
        forecast.note_preemption()
    assert forecast.reserved_ratio == 1.0


def test_blocks_to_come_are_those_of_the_expected_end_and_one_past_it() -> None:
    forecast = OutputForecast(0.45)  # and a margin of 0.05: half
    fresh, longer, done = answer(0), answer(70), answer(100)
    for sequence in (longer, done):
        sequence.blocks = list(range(-(-len(sequence.tokens) // 10)))
    assert forecast.num_blocks_to_come([fresh], 10) == 5  # 10 + 50 tokens, one block has the prompt
    assert forecast.num_blocks_to_come([longer], 10) == 1  # it has outlived the forecast: the next block
    assert forecast.num_blocks_to_come([done], 10) == 0
