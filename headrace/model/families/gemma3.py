"""Gemma 3 (text): windowed and global layers, each kind with its own rotation, and norms on both sides of a branch.

    h = norm(x);  x += norm(o(attention(rope(qk_norm(q, k)), v)));  h = norm(x);  x += norm(down(gelu(gate) * up))

Windowed layers turn with `rope_local`, global ones with `rope`. The embedding is scaled by sqrt(hidden), the scores by
query_pre_attn_scalar ** -0.5; both arrive in the config, as do the soft caps that Gemma 3 itself leaves off.
Source: Gemma 3 Technical Report, 2025, §2; Gemma 2, 2024 for soft caps and the double norms.
"""

from __future__ import annotations

from headrace.model.config import ModelConfig
from headrace.model.families.builder import Builder
from headrace.model.program import Program


def build(config: ModelConfig) -> Program:
    """Write the Program of a Gemma 3 checkpoint."""
    builder = Builder(config)
    rope_global = builder.rope(config.rope)
    rope_local = builder.rope(config.rope_local or config.rope)
    builder.embed()
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        window = builder.window(layer)
        builder.norm(f"{ours}.attn_norm", f"{theirs}.input_layernorm")
        builder.attention(layer, rope=rope_global if window is None else rope_local, qk_norm=True, window=window)
        builder.project_out(layer, add=False)
        builder.norm(f"{ours}.attn_post_norm", f"{theirs}.post_attention_layernorm", src="y", dst="x", add=True)
        builder.norm(f"{ours}.ffn_norm", f"{theirs}.pre_feedforward_layernorm")
        builder.gated_mlp(layer, add=False)
        builder.norm(f"{ours}.ffn_post_norm", f"{theirs}.post_feedforward_layernorm", src="y", dst="x", add=True)
    builder.head()
    return builder.program()
