"""`GgufCheckpoint`: a GGUF file seen through the `Checkpoint` protocol: HF names, HF row order.

Owns the `GgufFile`. Invariant: every tensor in the file is either served under an HF name or known not to matter; one
that nobody knows is an error at opening, because a model without it would answer nonsense.
Row order: llama files store each head of Q and K with the two halves of a rotation interleaved; `tensor()` puts them
back in half-split order. Rows are moved as stored bytes, so nothing is lost.

    file  row 2i     2i + 1              HF  row i      i + D/2        (D rows per head)

Source: the tensor names of the GGUF specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import ModelFileBroken, UnsupportedModel
from headrace.core.text_files import TextFiles
from headrace.model.config import ModelConfig
from headrace.model.gguf import GgufFile, TensorEntry
from headrace.model.gguf_config import config_from_gguf, read_architecture
from headrace.quant.tensor import Tensor

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_QKV_BIASES = {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"}
_QK_NORMS = {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"}
_SANDWICH_NORMS = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
_NAMES_OF = {
    "llama": {**_LAYER_NAMES, **_QKV_BIASES},
    "qwen2": {**_LAYER_NAMES, **_QKV_BIASES},
    "qwen3": {**_LAYER_NAMES, **_QK_NORMS},
    "gemma3": {**_LAYER_NAMES, **_QK_NORMS, **_SANDWICH_NORMS},
}
_FREQ_FACTORS = "rope_freqs.weight"
_LAYER = re.compile(r"blk\.(\d{1,6})\.([a-z_]+\.(?:weight|bias))")
_DERIVED = re.compile(r"blk\.\d+\.attn_rot_embd\.weight|rope_freqs\.weight")  # frequencies, not weights
_INTERLEAVED = re.compile(r"\.self_attn\.([qk])_proj\.")


class GgufCheckpoint:
    """One GGUF file as a checkpoint. Tensors are views of the file except Q and K of llama, which are row copies."""

    def __init__(self, path: Path, *, cache_directory: Path | None = None) -> None:
        self._file = GgufFile(path)
        self._notes = None if cache_directory is None else cache_directory / "digests"
        self._digest: str | None = None
        try:
            self._arch = read_architecture(self._file.metadata)
            self._refuse_split()
            self._entries = self._named_entries()
            self.config: ModelConfig = self._read_config()
        except BaseException:
            self._file.close()
            raise
        self.text_files = TextFiles(
            gguf_metadata=self._file.metadata.under("tokenizer.", "general."), cache_directory=cache_directory
        )

    def names(self) -> Iterator[str]:
        """Yield tensor names in HF spelling."""
        return iter(self._entries)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor in HF row order; ModelFileBroken when the file has no such tensor."""
        entry = self._entries.get(name)
        if entry is None:
            raise ModelFileBroken(f"{self._file.path}: tensor '{name}' is missing; convert or download the model again")
        tensor = Tensor(name, entry.format, entry.shape, self._file.rows(entry))
        interleaved = _INTERLEAVED.search(name) if self._arch == "llama" else None
        if interleaved is None:
            return tensor
        heads = self.config.num_heads if interleaved[1] == "q" else self.config.num_kv_heads
        return _half_split(tensor, heads, self.config.head_dim, self._file.path)

    def digest(self) -> str:
        """Return a digest of the file. Cost: the first call may read all of it."""
        if self._digest is None:
            self._digest = self._file.content().digest(self._notes)
        return self._digest

    def close(self) -> None:
        """Let go of the file; the mapping ends with the last tensor view. Idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_split(self) -> None:
        """Raise UnsupportedModel for one part of a model that was split over files."""
        parts = self._file.metadata.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise UnsupportedModel(f"{self._file.path} is one of {parts} parts; merge them into one GGUF file first")

    def _named_entries(self) -> dict[str, TensorEntry]:
        """Map HF names to table entries."""
        layer_names = _NAMES_OF[self._arch]
        entries: dict[str, TensorEntry] = {}
        for stored, entry in self._file.tensors.items():
            if _DERIVED.fullmatch(stored):
                continue
            layer = _LAYER.fullmatch(stored)
            if stored in _TOP_NAMES:
                name = _TOP_NAMES[stored]
            elif layer is not None and layer[2] in layer_names:
                name = f"model.layers.{int(layer[1])}.{layer_names[layer[2]]}"
            else:
                raise UnsupportedModel(f"{self._file.path}: tensor '{stored}' has no place in family '{self._arch}'")
            if len(entry.shape) > 2:
                raise UnsupportedModel(f"{self._file.path}: tensor '{stored}' has shape {entry.shape}; at most 2 axes")
            entries[name] = entry
        return entries

    def _read_config(self) -> ModelConfig:
        """Read the config and what only the tensors tell."""
        embedding = self._entries.get("model.embed_tokens.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ModelFileBroken(f"{self._file.path}: tensor 'token_embd.weight' is missing; convert the model again")
        factors: tuple[float, ...] = ()
        if _FREQ_FACTORS in self._file.tensors:
            entry = self._file.tensors[_FREQ_FACTORS]
            factors = tuple(Tensor(entry.name, entry.format, entry.shape, self._file.rows(entry)).to_float().tolist())
        return config_from_gguf(
            self._file.metadata,
            vocab_size=embedding.shape[0],
            tie_embeddings="lm_head.weight" not in self._entries,
            qkv_bias="model.layers.0.self_attn.q_proj.bias" in self._entries,
            freq_factors=factors,
        )


def _half_split(tensor: Tensor, heads: int, head_dim: int, path: Path) -> Tensor:
    """Return Q or K (matrix or bias) with each head's rows in half-split order."""
    if tensor.shape[0] != heads * head_dim:
        raise ModelFileBroken(f"{path}: tensor '{tensor.name}' has {tensor.shape[0]} rows, not {heads} x {head_dim}")
    rows = np.arange(heads * head_dim, dtype=np.int64).reshape(heads, head_dim // 2, 2)
    order: NDArray[np.int64] = rows.swapaxes(1, 2).reshape(-1)
    if len(tensor.shape) == 2:
        return tensor.take_rows(order)
    items = tensor.data.reshape(-1, tensor.format.row_bytes(1))[order]
    return Tensor(tensor.name, tensor.format, tensor.shape, items.reshape(1, -1))
