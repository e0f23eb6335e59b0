"""`build_program` serves the families it lists and refuses what cannot be a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.core.errors import UnsupportedModel
from headrace.model import ModelConfig, build_program, open_checkpoint
from headrace.testing.checkpoints import FAMILIES, Family, write_checkpoint


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    with open_checkpoint(write_checkpoint(tmp_path, "llama")) as checkpoint:
        return checkpoint.config


@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_uses_every_tensor_of_its_checkpoint_once(family: Family, tmp_path: Path) -> None:
    with open_checkpoint(write_checkpoint(tmp_path, family)) as checkpoint:
        program = build_program(checkpoint.config)
        used = [part for spec in program.weights for part in spec.parts]
        assert sorted(used) == sorted(checkpoint.names())


def test_an_unknown_family_is_named_with_those_that_are_served(config: ModelConfig) -> None:
    with pytest.raises(UnsupportedModel, match="'mamba' is not served; served are gemma3, llama, qwen2, qwen3"):
        build_program(replace(config, family="mamba"))


def test_heads_that_do_not_divide_are_refused(config: ModelConfig) -> None:
    with pytest.raises(UnsupportedModel, match="4 query heads do not divide over 3"):
        build_program(replace(config, num_kv_heads=3))


def test_a_rotation_wider_than_the_head_is_refused(config: ModelConfig) -> None:
    with pytest.raises(UnsupportedModel, match="rotation of 18 channels"):
        build_program(replace(config, rope=replace(config.rope, rotary_dim=18)))


def test_layer_kinds_must_be_as_many_as_layers(config: ModelConfig) -> None:
    with pytest.raises(UnsupportedModel, match="3 layer kinds for 2 layers"):
        build_program(replace(config, window=4, windowed_layers=(True, False, True)))
