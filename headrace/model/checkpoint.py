"""`Checkpoint`: an opened model on disk: config, tensors by HF name, and the files the text floor needs.

Owns the mapped files; `close()` (or the context manager) releases them. Tensors come out in HF's naming and row order
whatever the file format, so families and backends never ask where a model came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from headrace.core.text_files import TextFiles
from headrace.model.config import ModelConfig
from headrace.quant.tensor import Tensor


class Checkpoint(Protocol):
    """What `model.open_checkpoint(path)` returns, for GGUF files and HF directories alike."""

    @property
    def config(self) -> ModelConfig:
        """Architecture, already validated."""
        ...

    @property
    def text_files(self) -> TextFiles:
        """Files or metadata for tokenizer and chat template."""
        ...

    def names(self) -> Iterator[str]:
        """Yield tensor names in HF spelling."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Return a view of one tensor; ModelFileBroken names tensor and offset if the bytes are not there."""
        ...

    def digest(self) -> str:
        """Return a digest of every byte that config and weights come from.

        Cost: reads them all once; nothing at later starts where the files are as they were (`model.content`).
        """
        ...

    def close(self) -> None:
        """Unmap the files. Idempotent."""
        ...
