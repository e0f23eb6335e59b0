"""Weights of real files keep their numbers on the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.executor.cuda.load_weights import load_weights
from headrace.model import open_checkpoint
from headrace.model.build import build_program

# What is lost of each stored format, relative: nothing, scales in fp16, groups of 16 that join.
LOST = {"Q4_1": 0.0, "Q5_0": 0.0, "Q8_0": 0.0, "Q4_K": 1e-3, "Q6_K": 1e-2}


@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_auto_keeps_the_numbers_of_the_file(model: str, device: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    with open_checkpoint(path) as checkpoint:
        program = build_program(checkpoint.config)
        matrices, _ = load_weights(
            program, checkpoint, quantization="auto", dtype=torch.bfloat16, device=torch.device(device)
        )
        for spec in (spec for spec in program.weights if len(spec.shape) == 2):
            at = 0
            for tensor in map(checkpoint.tensor, spec.parts):
                count = min(32, tensor.shape[0])
                kept = matrices[spec.name].rows(slice(at, at + count)).cpu().numpy()
                stored = tensor.to_float(0, count)
                lost = float(np.linalg.norm(kept - stored) / np.linalg.norm(stored))
                assert lost <= LOST[tensor.format.label], (spec.name, tensor.format)
                at += tensor.shape[0]
