"""config.json in its old and new spelling, for each family, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.errors import ModelFileBroken, UnsupportedModel
from headrace.model.config_hf import config_from_hf


def llama(**more: Any) -> dict[str, Any]:
    """The sizes of Llama 3.2 1B."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "tie_word_embeddings": True,
        **more,
    }


def gemma3(**more: Any) -> dict[str, Any]:
    """The sizes of Gemma 3 270M, as first published."""
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 32768,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 512,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 256,
        "bos_token_id": 2,
        "eos_token_id": 1,
        **more,
    }


LLAMA3_SCALING = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def test_both_spellings_of_rope_give_the_same_config() -> None:
    old = config_from_hf(llama(rope_theta=500000.0, rope_scaling=LLAMA3_SCALING))
    new = config_from_hf(llama(rope_parameters={**LLAMA3_SCALING, "rope_theta": 500000.0}))
    assert old == new
    assert (old.rope.kind, old.rope.theta, old.rope.factor) == ("llama3", 500000.0, 32.0)
    assert old.rope.original_max_positions == 8192


def test_sizes_left_out_take_the_defaults_of_their_family() -> None:
    raw = llama()
    for key in ("head_dim", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
        del raw[key]
    config = config_from_hf(raw)
    assert (config.head_dim, config.num_kv_heads, config.max_positions) == (64, 32, 2048)
    assert config.norm_eps == 1e-6
    assert not config.tie_embeddings
    assert config.rope.theta == 10000.0


def test_end_tokens_of_both_files_are_joined() -> None:
    config = config_from_hf(llama(eos_token_id=128001), generation={"eos_token_id": [128001, 128009]})
    assert config.eos_token_ids == (128001, 128009)
    assert config_from_hf(llama(eos_token_id=None)).eos_token_ids == ()


def test_a_missing_head_ties_the_embeddings() -> None:
    assert config_from_hf(llama(tie_word_embeddings=False), has_head=False).tie_embeddings
    assert not config_from_hf(llama(tie_word_embeddings=False), has_head=True).tie_embeddings


def test_mistrals_window_is_for_every_layer_and_null_switches_it_off() -> None:
    raw = llama(architectures=["MistralForCausalLM"])
    assert config_from_hf({**raw, "sliding_window": 4096}).window == 4096
    assert config_from_hf({**raw, "sliding_window": 4096}).windowed_layers == ()
    assert config_from_hf({**raw, "sliding_window": None}).window is None
    assert config_from_hf(raw).family == "llama"


def test_a_window_in_a_llama_config_means_nothing() -> None:
    assert config_from_hf(llama(sliding_window=4096)).window is None


def test_qwen2_has_biases_and_a_window_only_when_it_says_so() -> None:
    raw = llama(architectures=["Qwen2ForCausalLM"], sliding_window=1024, max_window_layers=12)
    off = config_from_hf({**raw, "use_sliding_window": False})
    on = config_from_hf({**raw, "use_sliding_window": True})
    assert off.qkv_bias
    assert off.window is None
    assert on.window == 1024
    assert on.windowed_layers == (False,) * 12 + (True,) * 4


def test_qwen3_has_heads_of_its_own_size() -> None:
    raw = llama(architectures=["Qwen3ForCausalLM"])
    del raw["head_dim"]
    config = config_from_hf(raw)
    assert (config.family, config.head_dim, config.qkv_bias) == ("qwen3", 128, False)


def test_gemma3_in_old_and_new_spelling_is_the_same() -> None:
    old = config_from_hf(gemma3(rope_scaling={"rope_type": "linear", "factor": 8.0}))
    raw = gemma3(
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)],
    )
    del raw["rope_theta"], raw["rope_local_base_freq"]
    new = config_from_hf(raw)
    assert old == new
    assert (old.rope.kind, old.rope.factor, old.rope.theta) == ("linear", 8.0, 1e6)
    assert old.rope_local is not None
    assert (old.rope_local.kind, old.rope_local.theta) == ("default", 1e4)


def test_gemma3_adds_one_to_norms_and_scales_what_it_should() -> None:
    config = config_from_hf(gemma3(query_pre_attn_scalar=168, final_logit_softcapping=30.0))
    assert config.norm_offset == 1.0
    assert config.embed_scale == pytest.approx(640**0.5)
    assert config.attention_scale == pytest.approx(168**-0.5)
    assert config.final_softcap == 30.0
    assert config.attention_softcap is None
    assert config.activation == "gelu_tanh"
    assert config.tie_embeddings
    assert config.window == 512
    assert [i for i, windowed in enumerate(config.windowed_layers) if not windowed] == [5, 11, 17]


def test_the_text_half_of_a_multimodal_gemma3_is_read() -> None:
    text = gemma3()
    del text["architectures"], text["eos_token_id"]
    raw = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "eos_token_id": [1, 106]}
    config = config_from_hf(raw)
    assert (config.hidden_size, config.eos_token_ids) == (640, (1, 106))


def test_model_type_stands_in_for_missing_architectures() -> None:
    raw = llama(model_type="llama")
    del raw["architectures"]
    assert config_from_hf(raw).family == "llama"


def test_yarn_takes_its_temperature_from_the_config() -> None:
    base = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    plain = config_from_hf(llama(rope_scaling=base)).rope
    assert (plain.kind, plain.attention_factor, plain.original_max_positions) == ("yarn", None, 32768)
    stated = config_from_hf(llama(rope_scaling={**base, "attention_factor": 1.5})).rope
    assert stated.attention_factor == 1.5
    equal = config_from_hf(llama(rope_scaling={**base, "mscale": 0.7, "mscale_all_dim": 0.7})).rope
    assert equal.attention_factor == pytest.approx(1.0)


def test_a_partial_rotation_counts_its_channels() -> None:
    assert config_from_hf(llama(partial_rotary_factor=0.5)).rope.rotary_dim == 32


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not served"),
        ({"architectures": None, "model_type": "rwkv"}, "model_type 'rwkv'"),
        ({"hidden_act": "snake"}, "activation 'snake'"),
        ({"attention_bias": True}, "'attention_bias' is not served"),
        ({"mlp_bias": True}, "'mlp_bias' is not served"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized with 'gptq'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "'longrope' is not served"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic' is not served"),
    ],
)
def test_what_is_not_served_is_refused_by_name(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        config_from_hf(llama(**more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"hidden_size": 0}, "'hidden_size' is 0, not a size from 1 to 16,777,216"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"num_hidden_layers": "16"}, "'num_hidden_layers' is '16'"),
        ({"vocab_size": True}, "'vocab_size' is True"),
        ({"rms_norm_eps": -1.0}, "'rms_norm_eps' is -1.0, not a positive number"),
        ({"eos_token_id": 200000}, "end token 200,000 is outside the vocabulary of 128,256"),
        ({"eos_token_id": "</s>"}, "'eos_token_id' is '</s>'"),
        ({"rope_scaling": 3}, "'rope_scaling' is 3, not an object"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings' is 1, not true or false"),
    ],
)
def test_an_impossible_value_is_named_with_its_limit(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileBroken, match=message):
        config_from_hf(llama(**more))
