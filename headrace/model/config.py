"""`ModelConfig`: one spelling of what config.json and GGUF metadata say about an architecture.

Readers (`config_hf.py`, `gguf_config.py`) fill it; families turn it into a Program. Nothing else reads raw configs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.model.program import Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding as published: base and scaling rule.

    kind          default; linear (positions / factor); llama3 (frequency-dependent, Llama 3.1); yarn
    freq_factors  [rotary_dim/2] divisors, one per frequency: inv_freq[i] /= freq_factors[i] after `kind` is applied;
                  empty: none. GGUF files store the llama3 rule this way, with kind default
    """

    theta: float
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    rotary_dim: int | None = None  # None: the whole head
    freq_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything a family needs. Sizes in elements, `window` in tokens."""

    family: str  # llama, qwen2, qwen3, gemma3
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    rope: RopeConfig
    rope_local: RopeConfig | None = None  # Gemma 3's windowed layers
    activation: Activation = "silu"
    tie_embeddings: bool = False
    qkv_bias: bool = False
    window: int | None = None
    windowed_layers: tuple[bool, ...] = ()  # empty: every layer if window is set
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_softcap: float | None = None
    final_softcap: float | None = None
    norm_offset: float = 0.0  # added to norm weights at load (HF Gemma: 1.0)
    embed_scale: float = 1.0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
