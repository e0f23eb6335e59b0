"""Llama 2 and 3, Mistral and SmolLM2: pre-norm blocks, one rotation, gated feed-forward.

What sets the members apart is data: the rotation's scaling (Llama 3.1), the window (Mistral), the tied table (SmolLM2).

    h = norm(x);  x += o(attention(rope(q, k), v));  h = norm(x);  x += down(silu(gate(h)) * up(h))

Source: Llama 2, Touvron et al. 2023; The Llama 3 Herd, 2024; Mistral 7B, Jiang et al. 2023.
"""

from __future__ import annotations

from headrace.model.config import ModelConfig
from headrace.model.families.builder import Builder
from headrace.model.program import Program


def build(config: ModelConfig) -> Program:
    """Write the Program of a Llama-shaped checkpoint."""
    return prenorm_decoder(config, qk_norm=False)


def prenorm_decoder(config: ModelConfig, *, qk_norm: bool) -> Program:
    """Write the plain pre-norm decoder that Qwen shares; `qk_norm` normalizes each head before the rotation."""
    builder = Builder(config)
    rope = builder.rope(config.rope)
    builder.embed()
    for layer in range(config.num_layers):
        theirs = f"model.layers.{layer}"
        builder.norm(f"layers.{layer}.attn_norm", f"{theirs}.input_layernorm")
        builder.attention(layer, rope=rope, qk_norm=qk_norm, window=builder.window(layer))
        builder.project_out(layer, add=True)
        builder.norm(f"layers.{layer}.ffn_norm", f"{theirs}.post_attention_layernorm")
        builder.gated_mlp(layer, add=True)
    builder.head()
    return builder.program()
