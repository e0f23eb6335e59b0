"""What the text floor needs to build a tokenizer and a chat template. Made by `model/`, read by `text/`.

Here and not beside `Checkpoint` because `text` is a floor below `model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFiles:
    """Either `directory` (HF files) or `gguf_metadata`; never both, never neither."""

    directory: Path | None = None
    gguf_metadata: Mapping[str, object] | None = None  # the tokenizer.* keys, and general.*
    cache_directory: Path | None = None  # where a converted tokenizer may be kept
