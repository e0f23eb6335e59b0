"""Vocabularies for the text tests: the two real ones, golden encodings, and builders of small ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.core.text_files import TextFiles
from headrace.model import open_checkpoint
from headrace.text import Tokenizer, load_tokenizer

BYTE_LEVEL = [chr(c) for c in range(0x21, 0x7F)] + [chr(c) for c in range(0xA1, 0xAD)]
BYTE_LEVEL += [chr(c) for c in range(0xAE, 0x100)] + [chr(0x100 + n) for n in range(68)]


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    path = Path(__file__).parents[2] / "golden" / "text_vectors.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def smollm2_files(smollm2_path: Path) -> TextFiles:
    return open_checkpoint(smollm2_path).text_files


@pytest.fixture(scope="session")
def smollm2(smollm2_files: TextFiles) -> Tokenizer:
    return load_tokenizer(smollm2_files)


@pytest.fixture(scope="session")
def gemma3(gemma3_path: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(gemma3_path).text_files)


@pytest.fixture
def byte_level_metadata() -> dict[str, object]:
    """A small gpt2 vocabulary: the 256 bytes, three merges, two control tokens and one that a user defined."""
    tokens = [*BYTE_LEVEL, "he", "ll", "hell", "<|begin|>", "<|im_end|>", "<tool>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["h e", "l l", "he ll"],
        "tokenizer.ggml.token_type": [1] * 259 + [3, 3, 4],
        "tokenizer.ggml.bos_token_id": 259,
        "tokenizer.ggml.eos_token_id": 260,
    }


@pytest.fixture
def sentencepiece_metadata(vectors: dict[str, Any]) -> Callable[[str], dict[str, object]]:
    """Metadata of the small golden vocabularies: "prefixed" or "bare"."""

    def metadata(name: str) -> dict[str, object]:
        golden = vectors["sentencepiece"][name]
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [
                piece.replace("\u2581", " ") if type_ == 4 else piece
                for piece, type_ in zip(golden["pieces"], golden["types"], strict=True)
            ],
            "tokenizer.ggml.scores": [float(score) for score in golden["scores"]],
            "tokenizer.ggml.token_type": golden["types"],
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_space_prefix": name == "prefixed",
        }

    return metadata
