"""From config.json (and generation_config.json) to `ModelConfig`: Llama, Mistral, Qwen2, Qwen3, Gemma 3.

Pure: takes decoded JSON, returns a frozen value. Both spellings of RoPE are read: `rope_theta` with `rope_scaling`, and
the newer `rope_parameters`, which Gemma 3 nests by layer kind. A null is a missing key, except Mistral's window.
A feature that would change the answer and is not served is UnsupportedModel, never ignored.
Callers: `hf_checkpoint.py`. Source: the published configs of these models; defaults are those of their releases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.core.errors import UnsupportedModel
from headrace.model.config import ModelConfig, RopeConfig
from headrace.model.fields import Fields, end_tokens
from headrace.model.program import Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What a family's config.json may leave out."""

    name: str
    kv_heads: int | None = None  # None: as many as query heads
    head_dim: int | None = None  # None: hidden / heads
    max_positions: int = 32_768
    theta: float = 10_000.0
    tied: bool = False


_LLAMA = _Family(name="llama", max_positions=2048)
_MISTRAL = _Family(name="llama", kv_heads=8, max_positions=131_072)
_QWEN2 = _Family(name="qwen2")
_QWEN3 = _Family(name="qwen3", head_dim=128)
_GEMMA3 = _Family(name="gemma3", kv_heads=4, head_dim=256, max_positions=131_072, theta=1e6, tied=True)

_FAMILIES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _MISTRAL,
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,  # its text half
}
_MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
}
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu2": "relu2",
}
_GEMMA3_PERIOD = 6
_WINDOW = 4096


def config_from_hf(
    raw: Mapping[str, object], *, generation: Mapping[str, object] | None = None, has_head: bool = True
) -> ModelConfig:
    """Return the config of an HF checkpoint.

    raw         config.json
    generation  generation_config.json, which often knows more end tokens
    has_head    whether `lm_head.weight` is stored; without it embeddings are tied whatever the config says
    Raises UnsupportedModel naming architecture or feature, ModelFileBroken naming key and value.
    """
    architecture = _architecture(raw)
    family = _FAMILIES[architecture]
    outer = Fields(raw, source="config.json")
    text = raw.get("text_config")
    fields = Fields(text, source="config.json text_config") if isinstance(text, dict) else outer
    _refuse(outer, fields, architecture)
    gemma = family.name == "gemma3"
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads", 8 if gemma else None)
    layers, vocab_size = fields.size("num_hidden_layers"), fields.size("vocab_size", 262_208 if gemma else None)
    head_dim = fields.size("head_dim", family.head_dim or max(hidden // heads, 1))
    max_positions = fields.size("max_position_embeddings", family.max_positions)
    rope, rope_local = _ropes(fields, family, head_dim, max_positions)
    window, windowed_layers = _window(fields, architecture, layers, has_key="sliding_window" in raw)
    chosen = Fields(generation or {}, source="generation_config.json")
    starts = (fields.token("bos_token_id"), outer.token("bos_token_id"), chosen.token("bos_token_id"))
    return ModelConfig(
        family=family.name,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.size("num_key_value_heads", family.kv_heads or heads),
        head_dim=head_dim,
        max_positions=max_positions,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=rope,
        rope_local=rope_local,
        activation=_activation(fields, gemma),
        tie_embeddings=not has_head or fields.flag("tie_word_embeddings", family.tied),
        qkv_bias=family.name == "qwen2",
        window=window,
        windowed_layers=windowed_layers,
        attention_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5 if gemma else None,
        attention_softcap=fields.number_or_none("attn_logit_softcapping"),
        final_softcap=fields.number_or_none("final_logit_softcapping"),
        norm_offset=1.0 if gemma else 0.0,
        embed_scale=hidden**0.5 if gemma else 1.0,
        bos_token_id=next((token for token in starts if token is not None), None),
        eos_token_ids=end_tokens(vocab_size, *(part.tokens("eos_token_id") for part in (chosen, fields, outer))),
    )


def _architecture(raw: Mapping[str, object]) -> str:
    """Return the name of a served architecture."""
    listed = raw.get("architectures")
    name = listed[0] if isinstance(listed, list) and listed else _MODEL_TYPES.get(str(raw.get("model_type")))
    if name is None:
        name = f"of model_type '{raw.get('model_type')}'"
    if name == "Gemma3TextModel":
        name = "Gemma3ForCausalLM"
    if not isinstance(name, str) or name not in _FAMILIES:
        raise UnsupportedModel(f"architecture {name} is not served; served are {', '.join(_FAMILIES)}")
    return name


def _refuse(outer: Fields, fields: Fields, architecture: str) -> None:
    """Raise UnsupportedModel for what would change the answer if it were ignored."""
    quantization = outer.table("quantization_config")
    if quantization is not None:
        method = quantization.word("quant_method", "unknown")
        raise UnsupportedModel(f"weights quantized with '{method}' are not served; use the full weights or a GGUF file")
    for key in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if fields.flag(key) and not (key == "attention_bias" and architecture == "Qwen2ForCausalLM"):
            raise UnsupportedModel(f"{architecture} with '{key}' is not served")


def _activation(fields: Fields, gemma: bool) -> Activation:
    """Return the activation between gate and up."""
    if gemma:
        word = fields.word("hidden_activation", fields.word("hidden_act", "gelu_pytorch_tanh"))
    else:
        word = fields.word("hidden_act", "silu")
    if word not in _ACTIVATIONS:
        raise UnsupportedModel(f"activation '{word}' is not served; served are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[word]


def _window(fields: Fields, architecture: str, layers: int, *, has_key: bool) -> tuple[int | None, tuple[bool, ...]]:
    """Return the attention window and which layers it is for (empty: all)."""
    match architecture:
        case "LlamaForCausalLM":
            return None, ()
        case "MistralForCausalLM":  # a null switches it off; the first release's config had the number
            window = fields.size_or_none("sliding_window") if has_key else _WINDOW
        case "Qwen2ForCausalLM" | "Qwen3ForCausalLM":
            window = fields.size("sliding_window", _WINDOW) if fields.flag("use_sliding_window") else None
        case _:
            window = fields.size("sliding_window", _WINDOW)
    if window is None:
        return None, ()
    kinds = fields.get("layer_types")
    if isinstance(kinds, list):
        unknown = [kind for kind in kinds if kind not in ("sliding_attention", "full_attention")]
        if unknown:
            raise UnsupportedModel(f"{architecture} with layers of kind {unknown[0]!r} is not served")
        if len(kinds) != layers:
            raise fields.wrong("layer_types", f"one kind for each of {layers} layers")
        return window, tuple(kind == "sliding_attention" for kind in kinds)
    if architecture == "MistralForCausalLM":
        return window, ()
    if architecture.startswith("Qwen"):
        first = fields.get("max_window_layers")
        first = 28 if first is None else first
        if isinstance(first, bool) or not isinstance(first, int):
            raise fields.wrong("max_window_layers", "a number of layers")
        return window, tuple(layer >= first for layer in range(layers))
    period = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", _GEMMA3_PERIOD))
    return window, tuple((layer + 1) % period != 0 for layer in range(layers))


def _ropes(fields: Fields, family: _Family, head_dim: int, max_positions: int) -> tuple[RopeConfig, RopeConfig | None]:
    """Return the rotary embedding, and that of windowed layers where it is another one."""
    theta = fields.number("rope_theta", family.theta)
    scaling = fields.table("rope_scaling")
    params = fields.table("rope_parameters")
    if family.name != "gemma3":
        return _rope(scaling or params, fields, theta, head_dim, max_positions), None
    local_theta = fields.number("rope_local_base_freq", 10_000.0)
    everywhere = params.table("full_attention") if params else None
    local = params.table("sliding_attention") if params else None
    return (
        _rope(scaling or everywhere, fields, theta, head_dim, max_positions),
        _rope(local, fields, local_theta, head_dim, max_positions),
    )


def _rope(params: Fields | None, fields: Fields, theta: float, head_dim: int, max_positions: int) -> RopeConfig:
    """Return one rotary embedding; `params` wins over the config's own keys."""
    share = fields.number("partial_rotary_factor", 1.0)
    if params is None:
        return RopeConfig(theta=theta, rotary_dim=_rotary_dim(head_dim, share))
    theta = params.number("rope_theta", theta)
    rotary_dim = _rotary_dim(head_dim, params.number("partial_rotary_factor", share))
    kind = params.word("rope_type", params.word("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta, rotary_dim=rotary_dim)
    trained = params.size("original_max_position_embeddings", max_positions)
    factor = params.number("factor", max_positions / trained)
    match kind:
        case "linear":
            return RopeConfig(theta=theta, kind="linear", factor=factor, rotary_dim=rotary_dim)
        case "llama3":
            return RopeConfig(
                theta=theta,
                kind="llama3",
                factor=factor,
                low_freq_factor=params.number("low_freq_factor", 1.0),
                high_freq_factor=params.number("high_freq_factor", 4.0),
                original_max_positions=trained,
                rotary_dim=rotary_dim,
            )
        case "yarn" if params.flag("truncate", True):
            return RopeConfig(
                theta=theta,
                kind="yarn",
                factor=factor,
                original_max_positions=trained,
                beta_fast=params.number("beta_fast", 32.0),
                beta_slow=params.number("beta_slow", 1.0),
                attention_factor=_yarn_attention_factor(params, factor),
                rotary_dim=rotary_dim,
            )
        case _:
            raise UnsupportedModel(f"RoPE scaling '{kind}' is not served; served are default, linear, llama3 and yarn")


def _rotary_dim(head_dim: int, share: float) -> int | None:
    """Return the rotated channels of a head, None for all."""
    return None if share == 1.0 else int(head_dim * share)


def _yarn_attention_factor(params: Fields, factor: float) -> float | None:
    """Return the stated factor on cos and sin, or the ratio of the two temperatures; None leaves it to the rule."""
    stated = params.number_or_none("attention_factor")
    scale, scale_all = params.number_or_none("mscale"), params.number_or_none("mscale_all_dim")
    if stated is not None or scale is None or scale_all is None:
        return stated
    log = math.log(factor) if factor > 1 else 0.0
    return (0.1 * scale * log + 1.0) / (0.1 * scale_all * log + 1.0)
