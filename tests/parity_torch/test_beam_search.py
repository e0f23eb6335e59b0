"""Beam search against `transformers.generate(num_beams=…)`, in fp32: the same answers in the same order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from headrace.core.request import BeamParams, Request, RequestId, SamplingParams, StopRules
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, sequences_of
from headrace.testing.checkpoints import write_checkpoint
from tests.parity.test_golden_logits import opened


def ours(directory: Path, request: Request) -> list[list[int]]:
    executor = opened(directory, num_blocks=64)
    limits = SchedulerLimits(max_num_seqs=16, max_step_tokens=64, max_context=96, max_waiting=8)
    scheduler = Scheduler(BlockPool(executor.num_blocks), executor.block_size, limits)
    for sequence in sequences_of(request, 0):
        scheduler.submit(sequence)
    answers: dict[int, list[int]] = {}
    while (step := scheduler.schedule(0.0)) is not None:
        for event in scheduler.commit(step, executor.launch(step).result(), 0.0):
            answers[event.seq_id] = list(event.tokens)
    return [answers[index] for index in sorted(answers)]


_SEARCHES = [(2, 1.0, False), (3, 1.0, False), (4, 0.0, True), (5, 2.0, False)]


@pytest.mark.parametrize(("width", "penalty", "early"), _SEARCHES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_answers_are_those_of_transformers(
    width: int, penalty: float, early: bool, seed: int, tmp_path: Path
) -> None:
    directory = write_checkpoint(tmp_path / "m", "llama", seed=seed)
    prompt = np.random.RandomState(seed).randint(0, 256, 11).tolist()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    # End tokens that are met in a while: those that greedy decoding comes by.
    with torch.no_grad():
        greedy = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
    ends = sorted({int(token) for token in greedy[0, len(prompt) + 3 :: 4]})
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor([prompt]),
            num_beams=width,
            num_return_sequences=width,
            length_penalty=penalty,
            early_stopping=early,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=0,
        )
    request = Request(
        request_id=RequestId("r"),
        model="m",
        prompt=tuple(prompt),
        sampling=SamplingParams(),
        stop=StopRules(max_tokens=12, stop_token_ids=frozenset(ends)),
        n=width,
        beam=BeamParams(width=width, length_penalty=penalty, early_stopping=early),
    )
    expected = []
    for row in theirs[:, len(prompt) :].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
        expected.append(row[: end + 1])
    assert ours(directory, request) == expected
