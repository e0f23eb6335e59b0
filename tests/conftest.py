"""Real models for tests, pulled once into the user's cache by the package itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.model.store import Store


def pulled(name: str) -> Path:
    cache = os.environ.get("HEADRACE_CACHE_DIR", "~/.cache/headrace")
    return Store(Path(cache)).pull(name).path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model: llama family, Q4_1, byte-level BPE."""
    return pulled("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """A gemma3 model: Q4_K_M, SentencePiece, local and global layers."""
    return pulled("gemma3-270m")
