"""What sets the members of Llama's family, and Qwen, apart in their Programs."""

from __future__ import annotations

from pathlib import Path

from headrace.model import build_program, open_checkpoint
from headrace.model.program import Attention, Head, Linear, Program, QkWrite
from headrace.testing.checkpoints import Family, write_checkpoint


def program_of(family: Family, directory: Path) -> Program:
    with open_checkpoint(write_checkpoint(directory, family)) as checkpoint:
        return build_program(checkpoint.config)


def test_a_tied_model_scores_with_its_embedding(tmp_path: Path) -> None:
    tied, own = program_of("llama", tmp_path / "a").ops[-1], program_of("mistral", tmp_path / "b").ops[-1]
    assert isinstance(tied, Head)
    assert isinstance(own, Head)
    assert (tied.table, own.table) == ("embed", "head")


def test_mistral_sees_a_window_in_every_layer(tmp_path: Path) -> None:
    windows = [op.window for op in program_of("mistral", tmp_path).ops if isinstance(op, Attention)]
    assert windows == [12, 12]


def test_all_layers_share_one_rotation(tmp_path: Path) -> None:
    program = program_of("llama3", tmp_path)
    assert len(program.ropes) == 1
    assert {op.rope for op in program.ops if isinstance(op, QkWrite)} == {0}


def test_only_qwen2_has_a_bias_and_only_on_qkv(tmp_path: Path) -> None:
    for family in ("llama", "qwen2", "qwen3"):
        program = program_of(family, tmp_path / family)
        biased = {op.dst for op in program.ops if isinstance(op, Linear) and op.bias}
        assert biased == ({"qkv"} if family == "qwen2" else set())


def test_only_qwen3_norms_its_heads(tmp_path: Path) -> None:
    for family in ("llama", "qwen2", "qwen3"):
        normed = [op.q_norm for op in program_of(family, tmp_path / family).ops if isinstance(op, QkWrite)]
        assert all((name is not None) == (family == "qwen3") for name in normed)
