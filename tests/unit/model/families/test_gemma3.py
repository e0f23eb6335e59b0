"""What sets Gemma 3's Program apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.model import build_program, open_checkpoint
from headrace.model.config import ModelConfig
from headrace.model.program import Attention, Embed, Head, Linear, Norm, QkWrite
from headrace.testing.checkpoints import write_checkpoint


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    with open_checkpoint(write_checkpoint(tmp_path, "gemma3")) as checkpoint:
        return checkpoint.config


def test_windowed_layers_turn_with_the_local_base(config: ModelConfig) -> None:
    ops = build_program(config).ops
    windows = [op.window for op in ops if isinstance(op, Attention)]
    ropes = [op.rope for op in ops if isinstance(op, QkWrite)]
    assert windows == [12, 12, None, 12]
    assert ropes == [1, 1, 0, 1]
    slowest = [table.inv_freq[-1] for table in build_program(config).ropes]
    assert slowest[0] < slowest[1]  # the global base is the larger one


def test_every_branch_ends_in_a_norm_that_adds(config: ModelConfig) -> None:
    ops = build_program(config).ops
    assert sum(isinstance(op, Norm) and op.add for op in ops) == 2 * config.num_layers
    assert not any(isinstance(op, Linear) and op.epilogue == "add" for op in ops)


def test_scales_and_caps_come_from_the_config(config: ModelConfig) -> None:
    program = build_program(replace(config, attention_softcap=50.0))
    embed, head = program.ops[0], program.ops[-1]
    assert isinstance(embed, Embed)
    assert embed.scale == pytest.approx(64**0.5)
    assert isinstance(head, Head)
    assert (head.table, head.softcap) == ("embed", 6.0)
    attention = next(op for op in program.ops if isinstance(op, Attention))
    assert attention.scale == pytest.approx(24**-0.5)
    assert attention.softcap == 50.0
