"""Weights arrive stacked, offset and in the shape the Program asked for, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.core.errors import ModelFileBroken
from headrace.executor.float_weights import float_weights
from headrace.model import build_program, open_checkpoint
from headrace.testing.checkpoints import write_checkpoint


def test_fused_weights_are_their_parts_below_each_other(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, "qwen2"))
    weights = float_weights(build_program(checkpoint.config), checkpoint)
    parts = [checkpoint.tensor(f"model.layers.1.self_attn.{p}_proj.weight").to_float() for p in "qkv"]
    np.testing.assert_array_equal(weights["layers.1.qkv"], np.concatenate(parts))
    biases = [checkpoint.tensor(f"model.layers.1.self_attn.{p}_proj.bias").to_float() for p in "qkv"]
    np.testing.assert_array_equal(weights["layers.1.qkv_bias"], np.concatenate(biases))


def test_gemma_norms_get_their_offset_and_nothing_else_does(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, "gemma3"))
    weights = float_weights(build_program(checkpoint.config), checkpoint)
    stored = {name: checkpoint.tensor(name).to_float() for name in checkpoint.names()}
    for ours, theirs in [
        ("norm", "model.norm.weight"),
        ("layers.0.k_norm", "model.layers.0.self_attn.k_norm.weight"),
        ("layers.3.ffn_post_norm", "model.layers.3.post_feedforward_layernorm.weight"),
    ]:
        np.testing.assert_array_equal(weights[ours], stored[theirs] + np.float32(1))
    np.testing.assert_array_equal(weights["embed"], stored["model.embed_tokens.weight"])
    np.testing.assert_array_equal(weights["layers.0.o"], stored["model.layers.0.self_attn.o_proj.weight"])


def test_tables_larger_than_a_slab_arrive_whole(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, "llama", vocab_size=9001))
    table = checkpoint.tensor("model.embed_tokens.weight").to_float()
    np.testing.assert_array_equal(float_weights(build_program(checkpoint.config), checkpoint)["embed"], table)


def test_a_config_that_does_not_fit_the_tensors_is_refused_with_both_shapes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, "llama"))
    program = build_program(replace(checkpoint.config, intermediate_size=80))
    with pytest.raises(
        ModelFileBroken, match=r"'layers\.0\.gate_up' should be \[160, 64\].*gate_proj.weight \[96, 64\]"
    ):
        float_weights(program, checkpoint)
