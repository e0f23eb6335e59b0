"""Planning a step while one runs changes no token: same weights, same requests, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.delta import FinishReason
from headrace.core.request import SamplingParams
from headrace.executor import ReferenceExecutor
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.testing.checkpoints import Family, write_checkpoint
from tests.overlapping import serve

SAMPLED = [SamplingParams(temperature=1.5, top_p=0.95, seed=seed, min_tokens=seed) for seed in range(4)]
PENALTY = SamplingParams(temperature=1.5, repetition_penalty=1.3, seed=9)
TYPICAL = SamplingParams(temperature=1.5, typical_p=0.7, seed=9)


def executor(path: Path, num_blocks: int = 40) -> ReferenceExecutor:
    with open_checkpoint(path) as checkpoint:
        return ReferenceExecutor(build_program(checkpoint.config), checkpoint, num_blocks=num_blocks, block_size=8)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_tokens_are_the_same_with_the_next_step_planned_early(tmp_path: Path, family: Family) -> None:
    path = write_checkpoint(tmp_path / family, family)
    late = serve(executor(path), SAMPLED * 2, plans_ahead=False)
    early = serve(executor(path), SAMPLED * 2, plans_ahead=True)
    assert early.tokens == late.tokens
    assert early.finishes == late.finishes
    assert not late.num_ahead
    assert early.num_ahead > sum(map(len, early.tokens.values())) // 2
    assert not early.num_wasted  # ends by length are foreseen


def test_answers_that_end_by_a_token_waste_one_row_each_and_nothing_else_changes(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    stop = frozenset(range(0, 256, 5))
    late = serve(executor(path), SAMPLED, plans_ahead=False, max_tokens=40, stop=stop)
    early = serve(executor(path), SAMPLED, plans_ahead=True, max_tokens=40, stop=stop)
    assert early.tokens == late.tokens
    assert early.finishes == late.finishes
    num_stopped = sum(finish is FinishReason.STOP for finish in early.finishes.values())
    assert 0 < early.num_wasted <= num_stopped


@pytest.mark.parametrize("first", [PENALTY, TYPICAL])
def test_a_request_that_needs_the_host_keeps_all_steps_in_turn_while_it_runs(
    tmp_path: Path, first: SamplingParams
) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    late = serve(executor(path), [first, *SAMPLED[:2]], plans_ahead=False)
    early = serve(executor(path), [first, *SAMPLED[:2]], plans_ahead=True)
    assert early.tokens == late.tokens
    assert 0 < early.num_ahead <= 4  # the others end one and two tokens after it


def test_a_pool_that_runs_dry_preempts_and_overlaps_and_changes_no_token(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    late = serve(executor(path), SAMPLED, plans_ahead=False, max_tokens=40)
    early = serve(executor(path, num_blocks=12), SAMPLED, plans_ahead=True, max_tokens=40)
    assert early.tokens == late.tokens
    assert early.num_ahead > 0
