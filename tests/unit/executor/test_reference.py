"""The reference executor's promises to the engine: one entry per row, failures kept to their rows, a clean end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.core.errors import EngineDead
from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.executor import ReferenceExecutor
from headrace.model import build_program, open_checkpoint
from headrace.testing.checkpoints import VOCAB_SIZE, write_checkpoint, write_safetensors

GREEDY = SamplingParams(temperature=0.0)
PROMPT = [72, 101, 97, 100]


def executor_of(directory: Path) -> ReferenceExecutor:
    checkpoint = open_checkpoint(directory)
    executor = ReferenceExecutor(build_program(checkpoint.config), checkpoint, num_blocks=8, block_size=4)
    checkpoint.close()
    return executor


@pytest.fixture
def executor(tmp_path: Path) -> ReferenceExecutor:
    return executor_of(write_checkpoint(tmp_path / "model", "llama"))


def row(seq: int, tokens: list[int] = PROMPT, **more: object) -> Row:
    fields = {"start": 0, "blocks": (2 * seq, 2 * seq + 1), "sampling": GREEDY, **more}
    return Row(seq_id=SeqId(seq), tokens=tokens, **fields)  # type: ignore[arg-type]


def test_greedy_takes_the_best_logit_of_the_last_token(executor: ReferenceExecutor) -> None:
    step = Step(step_id=3, rows=(row(0), row(1, PROMPT[:2], sampling=None), row(2, [1, 2, 3, 4, 5])))
    logits = executor.logits(step)
    result = executor.launch(step).result()
    assert result.step_id == 3
    assert [sample and sample.token_id for sample in result.samples] == [logits[3].argmax(), None, logits[10].argmax()]
    assert result.failures == {}
    assert result.elapsed_s > 0


def test_scored_positions_are_log_probabilities_of_the_known_next_tokens(executor: ReferenceExecutor) -> None:
    scored_row = row(0, score=((0, PROMPT[1]), (2, PROMPT[3])), num_score_top=3)
    step = Step(step_id=0, rows=(row(1), scored_row))
    logits = executor.logits(step)[4:].astype(np.float64)
    result = executor.launch(step).result()
    assert result.scored[0] == ()
    for entry, offset in zip(result.scored[1], (0, 2), strict=True):
        logprobs = logits[offset] - np.log(np.exp(logits[offset]).sum())
        assert entry.token_id == PROMPT[offset + 1]
        assert entry.logprob == pytest.approx(logprobs[entry.token_id], abs=1e-6)
        assert [token for token, _ in entry.top] == np.argsort(-logprobs)[:3].tolist()


def test_many_scored_positions_are_all_answered(executor: ReferenceExecutor) -> None:
    tokens = [7] * 32
    big = Row(
        seq_id=SeqId(0), start=0, tokens=tokens, blocks=tuple(range(8)), sampling=None,
        score=tuple((offset, target) for offset in range(32) for target in (7, 8, 9)),
    )  # fmt: skip
    result = executor.launch(Step(step_id=0, rows=(big,))).result()
    assert [entry.token_id for entry in result.scored[0]] == [7, 8, 9] * 32


def test_a_token_outside_the_vocabulary_fails_its_row_only(executor: ReferenceExecutor) -> None:
    alone = executor.launch(Step(step_id=0, rows=(row(0),))).result()
    result = executor.launch(Step(step_id=1, rows=(row(1, [5, VOCAB_SIZE]), row(0), row(2, [-1])))).result()
    assert result.samples == (None, alone.samples[0], None)
    assert set(result.failures) == {1, 2}
    assert "token id 260 is outside the model's vocabulary of 260" in result.failures[SeqId(1)]


def test_a_row_with_nan_logits_fails_alone(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", "llama3")
    checkpoint = open_checkpoint(directory)
    tensors = {name: checkpoint.tensor(name).to_float() for name in checkpoint.names()}
    checkpoint.close()
    tensors["model.embed_tokens.weight"][99] = np.nan  # whoever says token 99 gets NaN
    write_safetensors(directory / "model.safetensors", tensors)
    executor = executor_of(directory)
    alone = executor.launch(Step(step_id=0, rows=(row(0),))).result()
    sick = row(1, [1, 99], score=((1, 5),))
    result = executor.launch(Step(step_id=1, rows=(sick, row(0)))).result()
    assert result.samples == (None, alone.samples[0])
    assert result.scored == ((), ())
    assert "not finite" in result.failures[SeqId(1)]


def test_a_reused_block_shows_nothing_of_its_last_owner(executor: ReferenceExecutor) -> None:
    fresh = executor.logits(Step(step_id=0, rows=(row(0),)))
    executor.logits(Step(step_id=1, rows=(row(0, [200] * 8),)))
    np.testing.assert_array_equal(executor.logits(Step(step_id=2, rows=(row(0),))), fresh)


def test_an_error_of_the_whole_step_waits_for_the_result(executor: ReferenceExecutor) -> None:
    pending = executor.launch(Step(step_id=0, rows=(row(0, blocks=()),)))
    with pytest.raises(ValueError, match="in 0 blocks"):
        pending.result()


def test_after_shutdown_a_step_ends_in_engine_dead(executor: ReferenceExecutor) -> None:
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(EngineDead, match="shut down"):
        executor.launch(Step(step_id=0, rows=(row(0),))).result()


def test_the_pool_is_as_large_as_asked_for(executor: ReferenceExecutor) -> None:
    assert (executor.num_blocks, executor.block_size) == (8, 4)
