from __future__ import annotations

from typing import Any

import pytest

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.testing import UniformModel, next_token, token_logprob

PLAIN = SamplingParams()


def model(**fields: Any) -> UniformModel:
    return UniformModel(num_blocks=4, block_size=2, vocab_size=50, **fields)


def row(seq_id: int, start: int, tokens: list[int], blocks: tuple[int, ...], **fields: Any) -> Row:
    return Row(SeqId(seq_id), start, tokens, blocks, fields.pop("sampling", PLAIN), **fields)


def run(executor: UniformModel, *rows: Row) -> list[int | None]:
    result = executor.launch(Step(0, rows)).result()
    return [sample.token_id if sample else None for sample in result.samples]


def test_chunks_give_the_token_of_the_whole() -> None:
    executor = model()
    assert run(executor, row(0, 0, [5, 6, 7], (2, 0), sampling=None)) == [None]
    assert run(executor, row(0, 3, [8], (2, 0))) == [next_token([5, 6, 7, 8], PLAIN, 50)]


def test_a_wrong_block_table_gives_another_token() -> None:
    executor = model()
    run(executor, row(0, 0, [5, 6, 7], (2, 0)))
    assert run(executor, row(0, 3, [8], (3, 0))) != [next_token([5, 6, 7, 8], PLAIN, 50)]


def test_a_row_may_not_write_to_a_block_that_another_names() -> None:
    with pytest.raises(RuntimeError, match="sequence 0 writes to block 1 of sequence 1"):
        run(model(), row(0, 0, [5], (1,)), row(1, 0, [9], (1,)))


def test_rows_may_read_one_block() -> None:
    executor = model()
    run(executor, row(0, 0, [5, 6], (2,)))
    found = run(executor, row(0, 2, [8], (2, 0)), row(1, 2, [9], (2, 1)))
    assert found == [next_token([5, 6, 8], PLAIN, 50), next_token([5, 6, 9], PLAIN, 50)]


def test_banned_tokens_are_passed_over() -> None:
    token = next_token([5], PLAIN, 50)
    assert run(model(), row(0, 0, [5], (1,), banned=(token,))) == [(token + 1) % 50]


def test_logprobs_and_scores_depend_on_the_history() -> None:
    asks = SamplingParams(logprobs=3)
    result = (
        model().launch(Step(0, (row(0, 0, [5, 6], (1,), sampling=asks, score=((0, 6),), num_score_top=1),))).result()
    )
    (sample,), ((score,),) = result.samples, result.scored
    assert sample is not None
    assert sample.logprob == token_logprob([5, 6], sample.token_id)
    assert len(sample.top) == 3
    assert (score.token_id, score.logprob) == (6, token_logprob([5], 6))


def test_rows_fail_and_steps_raise_when_told_to() -> None:
    executor = model(fail_row=lambda row: "bad" if row.seq_id == 1 else None)
    result = executor.launch(Step(0, (row(0, 0, [1], (0,)), row(1, 0, [1], (1,))))).result()
    assert result.failures == {1: "bad"}
    assert result.samples[1] is None
    assert result.samples[0] is not None


def test_a_block_handed_over_in_flight_and_a_third_step_are_caught() -> None:
    executor = model()
    executor.launch(Step(0, (row(0, 0, [1], (0,)),)))
    with pytest.raises(RuntimeError, match="sequence 0 writes to block 0 of sequence 1"):
        executor.launch(Step(1, (row(1, 0, [1], (0,)),)))
    executor.launch(Step(1, (row(1, 0, [1], (1,)),)))
    with pytest.raises(RuntimeError, match="2 steps pending"):
        executor.launch(Step(2, (row(2, 0, [1], (2,)),)))
