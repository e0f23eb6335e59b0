"""Every way of cutting that llama.cpp knows by the same name gives its tokens."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.errors import UnsupportedModel
from headrace.core.text_files import TextFiles
from headrace.text import load_tokenizer
from headrace.text.pre_tokenizers import KINDS, build_pre_tokenizer, pre_kind

PRES = ("default", "gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon", "tekken")
PRES += ("gpt-4o", "bloom", "viking", "seed-coder", "qwen35", "stablelm2")


@pytest.mark.parametrize("pre", PRES)
def test_a_text_is_cut_like_llama_cpp(pre: str, smollm2_files: TextFiles, vectors: dict[str, Any]) -> None:
    metadata = {**(smollm2_files.gguf_metadata or {}), "tokenizer.ggml.pre": pre}
    tokenizer = load_tokenizer(TextFiles(gguf_metadata=metadata))
    for text, ids in zip(vectors["pre_texts"], vectors["pre"][pre], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, repr(text)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_known_kind_cuts_without_losing_a_byte(name: str) -> None:
    text = "I'm 1234 naïve 日本語!\n\n  x"
    pieces = build_pre_tokenizer(KINDS[name]).pre_tokenize_str(text)
    assert sum(len(piece) for piece, _ in pieces) == len(text.encode())


def test_a_name_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(UnsupportedModel, match=r"'brand-new' .* known: .*llama-bpe.*qwen2"):
        pre_kind("brand-new")


def test_qwen_composes_characters_first(smollm2_files: TextFiles) -> None:
    metadata = {**(smollm2_files.gguf_metadata or {}), "tokenizer.ggml.pre": "qwen2"}
    tokenizer = load_tokenizer(TextFiles(gguf_metadata=metadata))
    assert tokenizer.encode("cafe\u0301", add_special=False) == tokenizer.encode("caf\u00e9", add_special=False)
