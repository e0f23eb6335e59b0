"""Tiny random checkpoints in HF's layout: every family as a directory that any reader of HF models opens.

Owns nothing; writes `config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json` with numpy alone.
Invariant: the same family, seed and overrides give the same bytes on every machine and numpy version (the legacy
random stream is frozen), so logits stored for them stay valid.
Callers: tests, examples and anyone who needs a model that loads in a millisecond.
Source of the container: the safetensors format description (8-byte header length, JSON header, raw data).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Family = Literal["llama", "llama3", "llama-linear", "mistral", "qwen2", "qwen3", "qwen3-yarn", "gemma3"]
Config = dict[str, object]

FAMILIES: tuple[Family, ...] = (
    "gemma3",
    "llama",
    "llama-linear",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3-yarn",
)
BOS_ID, EOS_ID, IM_START_ID, IM_END_ID = 256, 257, 258, 259
VOCAB_SIZE = 260  # 256 bytes and four special tokens

_SPECIAL = {"<s>": BOS_ID, "</s>": EOS_ID, "<|im_start|>": IM_START_ID, "<|im_end|>": IM_END_ID}
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_BASE: Config = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "torch_dtype": "float32",
}
_LLAMA3_SCALING: Config = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_SCALING: Config = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
# What sets each family apart from _BASE. Sizes differ on purpose: a swapped dimension must not go unseen.
_FAMILY: dict[Family, Config] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
    "llama-linear": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": 4,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "llama3": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 500000.0,
        "rope_scaling": _LLAMA3_SCALING,
    },
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 12},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 1},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 24, "rope_theta": 1000000.0},
    "qwen3-yarn": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 24,
        "rope_scaling": _YARN_SCALING,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 4,
        "head_dim": 32,
        "num_key_value_heads": 1,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 24,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "final_logit_softcapping": 6.0,
        "tie_word_embeddings": True,
    },
}


def write_checkpoint(directory: Path, family: Family = "llama", *, seed: int = 0, **overrides: object) -> Path:
    """Write a random checkpoint of a family into a new directory and return it. About 150 kB, a few milliseconds.

    `overrides` replace fields of config.json, in HF's spelling.
    """
    config = write_directory(directory, family, overrides)
    write_safetensors(directory / "model.safetensors", random_tensors(config, seed))
    return directory


def write_directory(directory: Path, family: Family, overrides: Config) -> Config:
    """Write everything but the weights into a new directory; return the config they must fit."""
    config = {**_BASE, **_FAMILY[family], **overrides}
    if family == "gemma3":
        del config["hidden_act"]  # Gemma 3 spells it hidden_activation
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", config)
    _write_json(directory / "tokenizer.json", _tokenizer())
    _write_json(directory / "tokenizer_config.json", _tokenizer_config())
    return config


def random_tensors(config: Config, seed: int) -> dict[str, NDArray[np.float32]]:
    """Return the tensors that a config calls for, in HF's names and shapes.

    Matrices have a spread of 1.5 / sqrt(inputs), so that logits are far from flat and greedy choices are clear.
    """
    random = np.random.RandomState(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in tensor_shapes(config):
        draws = random.standard_normal(shape)
        if name.endswith("norm.weight"):
            center = 0.0 if config["model_type"] == "gemma3_text" else 1.0
            draws = center + 0.2 * draws
        elif name.endswith(".bias"):
            draws *= 0.3
        elif "embed_tokens" in name:
            draws *= 0.1 if config["tie_word_embeddings"] else 1.0  # a larger tied table just echoes its input
        else:
            draws *= 1.5 / shape[-1] ** 0.5
        tensors[name] = draws.astype(np.float32)
    return tensors


def write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write fp32 tensors as one safetensors file, in the order given."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor, "<f4").tobytes())


def tensor_shapes(config: Config) -> list[tuple[str, tuple[int, ...]]]:
    """List every tensor of a model: name and shape."""
    hidden, ffn = _size(config, "hidden_size"), _size(config, "intermediate_size")
    dim = _size(config, "head_dim")
    q, kv = _size(config, "num_attention_heads") * dim, _size(config, "num_key_value_heads") * dim
    kind = config["model_type"]
    shapes: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (_size(config, "vocab_size"), hidden))]
    for i in range(_size(config, "num_hidden_layers")):
        layer = f"model.layers.{i}"
        shapes += [
            (f"{layer}.self_attn.q_proj.weight", (q, hidden)),
            (f"{layer}.self_attn.k_proj.weight", (kv, hidden)),
            (f"{layer}.self_attn.v_proj.weight", (kv, hidden)),
            (f"{layer}.self_attn.o_proj.weight", (hidden, q)),
            (f"{layer}.mlp.gate_proj.weight", (ffn, hidden)),
            (f"{layer}.mlp.up_proj.weight", (ffn, hidden)),
            (f"{layer}.mlp.down_proj.weight", (hidden, ffn)),
            (f"{layer}.input_layernorm.weight", (hidden,)),
            (f"{layer}.post_attention_layernorm.weight", (hidden,)),
        ]
        if kind == "qwen2":
            widths = (("q", q), ("k", kv), ("v", kv))
            shapes += [(f"{layer}.self_attn.{part}_proj.bias", (width,)) for part, width in widths]
        if kind in ("qwen3", "gemma3_text"):
            shapes += [(f"{layer}.self_attn.{part}_norm.weight", (dim,)) for part in "qk"]
        if kind == "gemma3_text":
            shapes += [(f"{layer}.{part}_feedforward_layernorm.weight", (hidden,)) for part in ("pre", "post")]
    shapes.append(("model.norm.weight", (hidden,)))
    if not config["tie_word_embeddings"]:
        shapes.append(("lm_head.weight", (_size(config, "vocab_size"), hidden)))
    return shapes


def _size(config: Config, key: str) -> int:
    """Return a whole-number field."""
    value = config[key]
    if not isinstance(value, int):
        raise TypeError(f"config field '{key}' must be a whole number, got {value!r}")
    return value


def _tokenizer() -> Config:
    """Return a tokenizer.json whose token ids 0 … 255 are the bytes of UTF-8 text."""
    special = [
        {
            "id": token_id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for text, token_id in _SPECIAL.items()
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS_ID], "tokens": ["<s>"]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {character: byte for byte, character in enumerate(_byte_characters())} | _SPECIAL,
            "merges": [],
        },
    }


def _tokenizer_config() -> Config:
    """Return a tokenizer_config.json with ChatML as its template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "model_max_length": 512,
        "chat_template": _CHAT_TEMPLATE,
    }


def _byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def _write_json(path: Path, content: Config) -> None:
    """Write one JSON file, readable."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
