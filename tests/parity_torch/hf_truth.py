"""What `transformers` says in fp32: the truth that goldens and live comparisons share.

The two real models get their published configs, written out here: a config that our readers misread cannot then agree
with itself. Their weights are our checkpoint's decoded tensors, under HF's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from headrace.model import Checkpoint

_SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
_GEMMA3_270M = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)],
    "tie_word_embeddings": True,
}


def directory_logits(directory: Path, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits [T, V] of an HF directory."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    return last_logits(model, tokens, 0)


def smollm2_logits(checkpoint: Checkpoint, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits [T, V] of SmolLM2-135M with this checkpoint's weights."""
    config = LlamaConfig(**_SMOLLM2_135M, attn_implementation="eager")
    return last_logits(_filled(LlamaForCausalLM(config), checkpoint), tokens, 0)


def gemma3_logits(checkpoint: Checkpoint, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits [T, V] of Gemma-3-270M with this checkpoint's weights."""
    return last_logits(gemma3_model(checkpoint), tokens, 0)


def gemma3_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """Return Gemma-3-270M in fp32 with this checkpoint's weights."""
    config = Gemma3TextConfig(**_GEMMA3_270M, attn_implementation="eager")
    return _filled(Gemma3ForCausalLM(config), checkpoint)


def _filled(model: torch.nn.Module, checkpoint: Checkpoint) -> torch.nn.Module:
    """Give a model the checkpoint's weights; every parameter must be there."""
    is_gemma = isinstance(model, Gemma3ForCausalLM)
    state = {}
    for name in checkpoint.names():
        weight = checkpoint.tensor(name).to_float()
        if is_gemma and name.endswith("norm.weight"):
            weight = weight + np.float32(checkpoint.config.norm_offset - 1.0)  # HF's Gemma multiplies by 1 + weight
        state[name] = torch.from_numpy(weight)
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state, strict=True)
    return model


def last_logits(model: torch.nn.Module, tokens: Sequence[int], count: int) -> NDArray[np.floating]:
    """Return the logits [count, V] of the last tokens, in the model's own precision; 0: of all."""
    model.eval()
    with torch.inference_mode():
        out: torch.Tensor = model(torch.tensor([list(tokens)]), use_cache=False, logits_to_keep=count).logits[0]
    return np.ascontiguousarray(out.numpy())
