"""Tokens go from one step to the next on the device; where numpy draws them, the step waits for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.testing.checkpoints import write_checkpoint
from tests.overlapping import serve

SAMPLED = [SamplingParams(temperature=1.5, top_k=40, seed=seed) for seed in range(3)]
LOGGED = SamplingParams(temperature=0.0, logprobs=2, logit_bias=((3, 5.0),))


def cuda(path: Path, device: str) -> CudaExecutor:
    with open_checkpoint(path) as checkpoint:
        return CudaExecutor(
            build_program(checkpoint.config),
            checkpoint,
            num_blocks=24,
            block_size=16,
            options=DeviceOptions(device=device, dtype="float32", max_rows=4, is_invariant=True),
        )


def test_tokens_are_the_same_with_the_next_step_planned_early(tmp_path: Path, device: str) -> None:
    executor = cuda(write_checkpoint(tmp_path / "llama", "llama"), device)
    wanted, stop = [LOGGED, SAMPLED[0]], frozenset(range(0, 256, 3))
    late = serve(executor, wanted, plans_ahead=False, max_tokens=4, stop=stop)
    early = serve(executor, wanted, plans_ahead=True, max_tokens=4, stop=stop)
    assert early.tokens == late.tokens
    assert early.finishes == late.finishes
    assert early.num_ahead > 1
    assert early.num_wasted > 0
    executor.shutdown()


@pytest.mark.parametrize("first", [SAMPLED[0], SamplingParams(temperature=1.3, typical_p=0.6, seed=9)])
def test_a_row_ahead_reads_what_was_drawn_wherever_that_was(tmp_path: Path, device: str, first: SamplingParams) -> None:
    executor = cuda(write_checkpoint(tmp_path / "qwen3", "qwen3"), device)

    def rows(texts: list[list[int]], start: int, *, is_ahead: bool = False) -> tuple[Row, ...]:
        return tuple(
            Row(SeqId(i), start, tuple(text[start:]), (2 * i, 2 * i + 1), params, num_output=start // 6, prompt_len=6,
                is_ahead=is_ahead)
            for i, (text, params) in enumerate(zip(texts, [SAMPLED[1], first], strict=True))
        )  # fmt: skip

    prompts = [[5, 4, 3, 2, 1, 0], [9, 8, 7, 6, 5, 4]]
    drawn = executor.launch(Step(0, rows(prompts, 0))).result()
    known = [[*text, sample.token_id] for text, sample in zip(prompts, drawn.samples, strict=True) if sample]
    expected = executor.launch(Step(1, rows(known, 6))).result()
    before = executor.launch(Step(2, rows(prompts, 0)))
    behind = executor.launch(Step(3, rows([[*text, 0] for text in prompts], 6, is_ahead=True)[::-1]))
    assert before.result().samples == drawn.samples
    assert behind.result().samples == expected.samples[::-1]
    executor.shutdown()


def test_a_row_ahead_of_nothing_is_refused(tmp_path: Path, device: str) -> None:
    executor = cuda(write_checkpoint(tmp_path / "llama", "llama"), device)
    row = Row(SeqId(5), 3, (0,), (0,), SAMPLED[0], num_output=1, prompt_len=3, is_ahead=True)
    with pytest.raises(ValueError, match="sequence 5 is ahead of a step that did not sample for it"):
        executor.launch(Step(0, (row,)))
    executor.shutdown()
