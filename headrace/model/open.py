"""`open_checkpoint`: look at a path, choose the reader.

The one place that knows which kinds of files hold models. Nothing is loaded: weights are mapped.
"""

from __future__ import annotations

from pathlib import Path

from headrace.core.errors import ConfigError, ModelFileBroken
from headrace.model.checkpoint import Checkpoint
from headrace.model.gguf import MAGIC
from headrace.model.gguf_checkpoint import GgufCheckpoint
from headrace.model.hf_checkpoint import HfCheckpoint


def open_checkpoint(path: Path, *, cache_directory: Path | None = None) -> Checkpoint:
    """Open a GGUF file, or a directory with either HF files or one GGUF file.

    `cache_directory` is where a tokenizer made from GGUF metadata and digests of the files may be kept between starts.
    Raises ConfigError when there is no model at `path`, ModelFileBroken or UnsupportedModel when it cannot be used.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            return HfCheckpoint(path, cache_directory=cache_directory)
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return GgufCheckpoint(files[0], cache_directory=cache_directory)
        if files:
            names = ", ".join(file.name for file in files)
            raise ConfigError(f"{path} holds {len(files)} GGUF files; name one of them: {names}")
        raise ConfigError(f"{path} holds no model: neither config.json nor a .gguf file")
    if not path.exists():
        raise ConfigError(f"no model at {path}: the path does not exist")
    if path.suffix == ".safetensors":
        raise ConfigError(f"{path} is weights alone; give its directory, which has config.json and the tokenizer")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelFileBroken(f"{path} is not a GGUF file: it does not start with 'GGUF'; download it again")
    return GgufCheckpoint(path, cache_directory=cache_directory)
