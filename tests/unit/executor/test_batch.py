"""`pack` lays a step out as the Batch docstring says."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.executor.batch import Batch, pack

GREEDY = SamplingParams(temperature=0.0)


def row(seq: int, start: int, tokens: list[int], blocks: tuple[int, ...], **more: object) -> Row:
    fields = {"sampling": None, **more}
    return Row(seq_id=SeqId(seq), start=start, tokens=tokens, blocks=blocks, **fields)  # type: ignore[arg-type]


def mixed() -> Batch:
    """A decode row, a prompt chunk in the middle of its prompt, and a whole prompt that is scored."""
    rows = (
        row(7, 9, [50], (3, 1, 6), sampling=GREEDY),
        row(8, 4, [60, 61, 62], (2, 5)),
        row(9, 0, [70, 71], (0,), sampling=GREEDY, score=((0, 71), (1, 33))),
    )
    return pack(Step(step_id=0, rows=rows), block_size=4)


def test_tokens_and_positions_are_packed_in_row_order() -> None:
    batch = mixed()
    assert batch.tokens.tolist() == [50, 60, 61, 62, 70, 71]
    assert batch.positions.tolist() == [9, 4, 5, 6, 0, 1]
    assert batch.token_rows.tolist() == [0, 1, 1, 1, 2, 2]
    assert batch.row_starts.tolist() == [0, 1, 4, 6]
    assert batch.seq_lens.tolist() == [10, 7, 2]


def test_slots_follow_the_block_table() -> None:
    batch = mixed()
    assert batch.slots.tolist() == [6 * 4 + 1, 5 * 4, 5 * 4 + 1, 5 * 4 + 2, 0, 1]
    assert batch.block_tables.tolist() == [[3, 1, 6], [2, 5, -1], [0, -1, -1]]


def test_rows_to_score_name_packed_tokens() -> None:
    batch = mixed()
    assert batch.sample_rows.tolist() == [0, 2]
    assert batch.sample_tokens.tolist() == [0, 5]
    assert batch.score_rows.tolist() == [2, 2]
    assert batch.score_tokens.tolist() == [4, 5]
    assert batch.score_targets.tolist() == [71, 33]


def test_every_array_is_contiguous_and_has_the_stated_type() -> None:
    batch = mixed()
    for name in Batch.__slots__:
        array = getattr(batch, name)
        if name not in ("block_size", "reaches"):
            assert array.flags.c_contiguous, name
            assert array.dtype == (np.int64 if name == "slots" else np.int32), name


def test_an_empty_step_packs_to_empty_arrays() -> None:
    batch = pack(Step(step_id=0, rows=()), block_size=4)
    assert (batch.num_rows, batch.num_tokens, batch.block_tables.shape) == (0, 0, (0, 0))


def test_a_row_whose_blocks_end_too_early_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"sequence 8\): 2 tokens ending at position 4 in 1 blocks of 4"):
        pack(Step(step_id=0, rows=(row(8, 3, [1, 2], (0,)),)), block_size=4)


def test_a_row_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        pack(Step(step_id=0, rows=(row(1, 3, [], (0,)),)), block_size=4)


def test_a_scored_offset_outside_the_row_is_refused() -> None:
    with pytest.raises(ValueError, match="scores offset 2 of 2 tokens"):
        pack(Step(step_id=0, rows=(row(1, 0, [5, 6], (0,), score=((2, 9),)),)), block_size=4)
