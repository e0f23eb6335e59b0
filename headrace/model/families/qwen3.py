"""Qwen 3 (dense): Llama's block with an RMS norm on every query and key head, and no bias.

Source: Qwen3 Technical Report, 2025, §2.
"""

from __future__ import annotations

from headrace.model.config import ModelConfig
from headrace.model.families.llama import prenorm_decoder
from headrace.model.program import Program


def build(config: ModelConfig) -> Program:
    """Write the Program of a Qwen 3 checkpoint."""
    return prenorm_decoder(config, qk_norm=True)
