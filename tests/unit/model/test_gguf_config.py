"""GGUF metadata becomes the same kind of config as config.json does."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.errors import ModelFileBroken, UnsupportedModel
from headrace.model.config import ModelConfig
from headrace.model.gguf_config import config_from_gguf


def read(metadata: dict[str, Any]) -> ModelConfig:
    return config_from_gguf(metadata, vocab_size=100, tie_embeddings=True, qkv_bias=False)


def gemma3(files: Any, **more: Any) -> dict[str, Any]:
    metadata = {key.replace("llama.", "gemma3."): value for key, value in files.llama_metadata().items()}
    return {**metadata, "general.architecture": "gemma3", "gemma3.attention.sliding_window": 16, **more}


def test_heads_and_sizes_come_from_the_keys_of_the_architecture(files: Any) -> None:
    config = read(files.llama_metadata())
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 8)
    assert config.norm_eps == pytest.approx(1e-5)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert config.windowed_layers == ()


def test_tokens_that_end_a_turn_end_an_answer_too(files: Any) -> None:
    config = read(files.llama_metadata(**{"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 2}))
    assert config.eos_token_ids == (2, 7)


def test_gemma3_layers_look_everywhere_each_sixth_time(files: Any) -> None:
    config = read(gemma3(files, **{"gemma3.block_count": 7}))
    assert config.windowed_layers == (True, True, True, True, True, False, True)
    assert config.window == 16
    assert config.norm_offset == 0.0


def test_a_pattern_in_the_file_wins(files: Any) -> None:
    listed = read(gemma3(files, **{"gemma3.attention.sliding_window_pattern": [False, True]}))
    assert listed.windowed_layers == (False, True)
    with pytest.raises(ModelFileBroken, match="has 3 of 2 layers"):
        read(gemma3(files, **{"gemma3.attention.sliding_window_pattern": [True] * 3}))


def test_the_largest_gemma3_scales_queries_by_hidden_over_heads(files: Any) -> None:
    large = {"gemma3.block_count": 62, "gemma3.embedding_length": 5376, "gemma3.attention.head_count": 32}
    sizes = {"gemma3.attention.key_length": 128, "gemma3.attention.value_length": 128}
    assert read(gemma3(files, **large, **sizes)).attention_scale == pytest.approx(168**-0.5)
    assert read(gemma3(files)).attention_scale is None


def test_linear_scaling_is_for_the_layers_that_see_everything(files: Any) -> None:
    scaling = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    config = read(gemma3(files, **scaling))
    assert (config.rope.kind, config.rope.factor) == ("linear", 8.0)
    assert config.rope_local is not None
    assert config.rope_local.kind == "default"


def test_yarn_keeps_the_context_it_was_trained_on(files: Any) -> None:
    scaling = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    rope = read(files.llama_metadata(**scaling)).rope
    assert (rope.kind, rope.factor, rope.original_max_positions) == ("yarn", 4.0, 32)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"general.architecture": "mamba"}, "'mamba' is not served; served are gemma3, llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "mixture of 8 experts"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope' of 'llama'"),
        ({"llama.rope.dimension_count": 4}, "rotates 4 of 8 channels"),
        ({"llama.attention.value_length": 16}, "values of another size"),
        ({"llama.feed_forward_length": [64, 32]}, "differs from layer to layer"),
    ],
)
def test_what_is_not_served_is_refused_by_name(files: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read(files.llama_metadata(**more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"general.architecture": 3}, "'general.architecture' is missing"),
        ({"llama.block_count": 0}, "'llama.block_count' is 0"),
        ({"llama.block_count": 1 << 30}, "not a size from 1 to 16,777,216"),
        ({"llama.rope.freq_base": float("nan")}, "'llama.rope.freq_base' is nan"),
        ({"tokenizer.ggml.eos_token_id": 100}, "end token 100 is outside the vocabulary of 100"),
    ],
)
def test_an_impossible_value_is_named(files: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileBroken, match=message):
        read(files.llama_metadata(**more))
