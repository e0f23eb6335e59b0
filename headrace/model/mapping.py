"""Files mapped into memory: weights are read where they lie, pages come in as they are touched.

Invariant: a mapping ends only when no array looks into it, so a late reader never meets an unmapped page.
Callers: the GGUF and safetensors readers.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from headrace.core.errors import ConfigError, ModelFileBroken
from headrace.model.content import FileState


def map_file(path: Path) -> tuple[mmap.mmap, FileState]:
    """Map a file for reading; return its state too. ConfigError when it is not there, ModelFileBroken when empty."""
    try:
        with path.open("rb") as file:
            state = FileState.of(os.fstat(file.fileno()))
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), state
    except ValueError as error:
        raise ModelFileBroken(f"{path} is empty; download it again") from error
    except OSError as error:
        raise ConfigError(f"cannot read model file {path}: {error.strerror}") from error


def release(mapping: mmap.mmap) -> None:
    """Close a mapping, or leave it to its last view: unmapping under a live array would crash the process."""
    try:
        mapping.close()
    except BufferError:
        return
