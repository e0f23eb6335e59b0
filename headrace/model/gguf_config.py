"""From GGUF metadata to `ModelConfig`: the keys of the four architectures, and what only Gemma 3 says.

Pure: reads metadata, returns a frozen value. Sizes are checked here, so families need no bounds of their own.
Callers: `gguf_checkpoint.py`, which knows the tensors and passes what the metadata leaves to them.
Source: the key names of the GGUF specification; Gemma 3's defaults from its model card (Gemma team, 2025).
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.core.errors import ModelFileBroken, UnsupportedModel
from headrace.model.config import ModelConfig, RopeConfig
from headrace.model.fields import Fields, end_tokens
from headrace.model.program import Activation

ARCHITECTURES = ("gemma3", "llama", "qwen2", "qwen3")

_GEMMA3_PERIOD = 6  # five windowed layers, then one that sees everything
_GEMMA3_LOCAL_THETA = 10_000.0
_GEMMA3_27B_LAYERS = 62  # the one size whose queries are scaled by hidden / heads, not by the head
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_architecture(metadata: Mapping[str, object]) -> str:
    """Return the architecture's name; UnsupportedModel names one that is not served."""
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise ModelFileBroken("metadata 'general.architecture' is missing; this GGUF file holds no model")
    if arch not in ARCHITECTURES:
        raise UnsupportedModel(f"GGUF architecture '{arch}' is not served; served are {', '.join(ARCHITECTURES)}")
    return arch


def config_from_gguf(
    metadata: Mapping[str, object],
    *,
    vocab_size: int,
    tie_embeddings: bool,
    qkv_bias: bool,
    freq_factors: tuple[float, ...] = (),
) -> ModelConfig:
    """Return the config of a GGUF file; the keyword arguments are what its tensors say.

    Raises UnsupportedModel for an unknown architecture or RoPE scaling, ModelFileBroken for impossible values.
    """
    arch = read_architecture(metadata)
    keys = Fields(metadata, source="GGUF metadata", prefix=f"{arch}.")
    tokens = Fields(metadata, source="GGUF metadata", prefix="tokenizer.ggml.")
    if metadata.get(f"{arch}.expert_count"):
        raise UnsupportedModel(f"a mixture of {metadata[f'{arch}.expert_count']} experts in '{arch}' is not served")
    hidden, heads, layers = keys.size("embedding_length"), keys.size("attention.head_count"), keys.size("block_count")
    head_dim = keys.size("attention.key_length", max(hidden // heads, 1))
    if keys.size("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModel(f"'{arch}' with values of another size than keys ({head_dim}) is not served")
    window, windowed_layers = _window(keys, arch, layers)
    gemma = arch == "gemma3"
    activation: Activation = "gelu_tanh" if gemma else "silu"
    return ModelConfig(
        family=arch,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=keys.size("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=keys.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_positions=keys.size("context_length"),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon", 1e-6),
        rope=_rope(keys, arch, head_dim, freq_factors),
        rope_local=RopeConfig(theta=keys.number("rope.freq_base_swa", _GEMMA3_LOCAL_THETA)) if gemma else None,
        activation=activation,
        tie_embeddings=tie_embeddings,
        qkv_bias=qkv_bias,
        window=window,
        windowed_layers=windowed_layers,
        attention_scale=_attention_scale(keys, arch, layers, hidden, heads),
        attention_softcap=keys.number_or_none("attn_logit_softcapping"),
        final_softcap=keys.number_or_none("final_logit_softcapping"),
        norm_offset=0.0,  # Gemma's converter has added the 1 already
        embed_scale=hidden**0.5 if gemma else 1.0,
        bos_token_id=tokens.token("bos_token_id"),
        eos_token_ids=end_tokens(vocab_size, *(tokens.tokens(key) for key in _END_KEYS)),
    )


def _window(keys: Fields, arch: str, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """Return the attention window and which layers it is for."""
    window = keys.size_or_none("attention.sliding_window")
    if window is None:
        return None, ()
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise ModelFileBroken(f"'{arch}.attention.sliding_window_pattern' has {len(pattern)} of {layers} layers")
        return window, tuple(bool(item) for item in pattern)
    if pattern is not None or arch == "gemma3":
        period = keys.size("attention.sliding_window_pattern", _GEMMA3_PERIOD)
        return window, tuple((layer + 1) % period != 0 for layer in range(layers))
    return window, ()


def _attention_scale(keys: Fields, arch: str, layers: int, hidden: int, heads: int) -> float | None:
    """Return the factor on q·k, None for the usual head_dim ** -0.5."""
    stated = keys.number_or_none("attention.scale")
    if stated is None and arch == "gemma3" and layers == _GEMMA3_27B_LAYERS:
        return float((hidden / heads) ** -0.5)
    return stated


def _rope(keys: Fields, arch: str, head_dim: int, freq_factors: tuple[float, ...]) -> RopeConfig:
    """Return the rotary embedding; `freq_factors` comes from the tensor `rope_freqs.weight`."""
    rotary = keys.size("rope.dimension_count", head_dim)
    if rotary > head_dim or (arch == "llama" and rotary != head_dim):
        raise UnsupportedModel(f"'{arch}' that rotates {rotary} of {head_dim} channels in a head is not served")
    if freq_factors and (len(freq_factors) != rotary // 2 or min(freq_factors) <= 0):
        raise ModelFileBroken(f"rope_freqs.weight has {len(freq_factors)} factors, {rotary // 2} above 0 are needed")
    theta = keys.number("rope.freq_base", 10_000.0)
    rotary_dim = None if rotary == head_dim else rotary
    kind = keys.word("rope.scaling.type", "linear")
    factor = keys.number_or_none("rope.scaling.factor") or keys.number_or_none("rope.scale_linear") or 1.0
    match kind:
        case "none":
            return RopeConfig(theta=theta, rotary_dim=rotary_dim, freq_factors=freq_factors)
        case "linear":
            return RopeConfig(
                theta=theta,
                kind="default" if factor == 1.0 else "linear",
                factor=factor,
                rotary_dim=rotary_dim,
                freq_factors=freq_factors,
            )
        case "yarn":
            return RopeConfig(
                theta=theta,
                kind="yarn",
                factor=factor,
                original_max_positions=keys.size("rope.scaling.original_context_length", keys.size("context_length")),
                beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
                beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
                rotary_dim=rotary_dim,
                freq_factors=freq_factors,
            )
        case _:
            raise UnsupportedModel(f"RoPE scaling '{kind}' of '{arch}' is not served; served are linear and yarn")
