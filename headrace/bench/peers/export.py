"""Writes a checkpoint as a Hugging Face directory, so that engines which read nothing else load the same weights.

Streams tensor by tensor: one tensor is in memory at a time. Called by `headrace bench peers` for OpenVINO and vLLM.
Source: the safetensors format (8-byte header length, JSON header, raw little-endian data).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import UnsupportedModel
from headrace.model.checkpoint import Checkpoint
from headrace.model.config import ModelConfig
from headrace.text import Tokenizer

DType = Literal["F32", "BF16"]
_ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}


def export_hf(checkpoint: Checkpoint, tokenizer: Tokenizer, directory: Path, dtype: DType) -> Path:
    """Write config.json, model.safetensors and tokenizer.json into `directory`; return it.

    Raises UnsupportedModel for families whose config this writer does not know.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = _config(checkpoint.config, tokenizer, dtype)
    (directory / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=1))
    tokenizer.save(directory / "tokenizer.json")
    (directory / "tokenizer_config.json").write_bytes(
        msgspec.json.encode({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1 << 20})
    )
    _write_weights(checkpoint, directory / "model.safetensors", dtype)
    return directory


def _config(config: ModelConfig, tokenizer: Tokenizer, dtype: DType) -> dict[str, object]:
    if config.family not in _ARCHITECTURES or config.rope.kind != "default":
        raise UnsupportedModel(
            f"cannot export family '{config.family}' with rope '{config.rope.kind}'; "
            f"known: {', '.join(_ARCHITECTURES)} with rope 'default'"
        )
    kind, architecture = _ARCHITECTURES[config.family]
    return {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.eos_ids),
        "torch_dtype": {"F32": "float32", "BF16": "bfloat16"}[dtype],
    }


def _write_weights(checkpoint: Checkpoint, path: Path, dtype: DType) -> None:
    width = {"F32": 4, "BF16": 2}[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    names = sorted(checkpoint.names())
    for name in names:
        shape = checkpoint.tensor(name).shape
        size = int(np.prod(shape)) * width
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            values = checkpoint.tensor(name).to_float()
            out.write((values if dtype == "F32" else _to_bf16(values)).tobytes())


def _to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 bits, ties to even. Finite inputs only, as weights are."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
