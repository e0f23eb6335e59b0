"""`HfCheckpoint`: a directory with config.json and safetensors seen through the `Checkpoint` protocol.

Owns the mapped weight files. Names come out as the plain text model's: a multimodal Gemma 3 keeps its text half under
another prefix, and its vision half is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from headrace.core.errors import ConfigError, ModelFileBroken
from headrace.core.text_files import TextFiles
from headrace.model.config import ModelConfig
from headrace.model.config_hf import config_from_hf
from headrace.model.safetensors import SafetensorsSet
from headrace.quant.tensor import Tensor

_MAX_CONFIG_BYTES = 4 << 20
# stored prefix → prefix of the plain text model; longest first
_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_SKIPPED = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


class HfCheckpoint:
    """One HF directory as a checkpoint. Every tensor is a view of a mapped file."""

    def __init__(self, directory: Path, *, cache_directory: Path | None = None) -> None:
        raw = _read_json(directory / "config.json")
        if raw is None:
            raise ConfigError(f"{directory} holds no config.json")
        generation = _read_json(directory / "generation_config.json")
        # Read the config once before the weights: an architecture that is not served says so even without weights.
        config_from_hf(raw, generation=generation)
        self._weights = SafetensorsSet(directory)
        try:
            self._stored = {name: stored for stored in self._weights.names() if (name := _plain_name(stored))}
            has_head = "lm_head.weight" in self._stored
            self.config: ModelConfig = config_from_hf(raw, generation=generation, has_head=has_head)
        except BaseException:
            self._weights.close()
            raise
        self._directory = directory
        self._raw_configs = msgspec.json.encode([raw, generation], order="sorted")
        self._notes = None if cache_directory is None else cache_directory / "digests"
        self._digest: str | None = None
        self.text_files = TextFiles(directory=directory)

    def names(self) -> Iterator[str]:
        """Yield tensor names."""
        return iter(self._stored)

    def tensor(self, name: str) -> Tensor:
        """Return a view of one tensor; ModelFileBroken when the checkpoint has none of that name."""
        stored = self._stored.get(name)
        if stored is None:
            raise ModelFileBroken(f"{self._directory}: tensor '{name}' is missing; download the model again")
        tensor = self._weights.tensor(stored)
        return tensor if stored == name else Tensor(name, tensor.format, tensor.shape, tensor.data)

    def digest(self) -> str:
        """Return a digest of config and weight files. Cost: the first call may read all of them."""
        if self._digest is None:
            parts = [hashlib.sha256(self._raw_configs).hexdigest()]
            parts += [f"{file.path.name} {file.digest(self._notes)}" for file in self._weights.contents()]
            self._digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return self._digest

    def close(self) -> None:
        """Let go of the files; mappings end with the last tensor view. Idempotent."""
        self._weights.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plain_name(stored: str) -> str | None:
    """Return the text model's name of a tensor, None for what the text model does not use."""
    if stored.startswith(_SKIPPED) or stored.endswith(".rotary_emb.inv_freq"):
        return None
    for prefix, plain in _PREFIXES:
        if stored.startswith(prefix):
            return plain + stored.removeprefix(prefix)
    return stored


def _read_json(path: Path) -> dict[str, object] | None:
    """Return the JSON object in a file, None when there is no file."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ModelFileBroken(f"{path} has {path.stat().st_size:,} bytes, limit {_MAX_CONFIG_BYTES:,}")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileBroken(f"{path} is not a JSON object: {error}; download it again") from error
