"""Qwen 2 and 2.5: Llama's block with a bias on Q, K and V (and on nothing else).

The bias is in the config (`qkv_bias`), so the ops are Llama's.
Source: Qwen2 Technical Report, 2024, §2.2.
"""

from __future__ import annotations

from dataclasses import replace

from headrace.model.config import ModelConfig
from headrace.model.families.llama import prenorm_decoder
from headrace.model.program import Program


def build(config: ModelConfig) -> Program:
    """Write the Program of a Qwen 2 checkpoint."""
    return prenorm_decoder(replace(config, qkv_bias=True), qk_norm=False)
