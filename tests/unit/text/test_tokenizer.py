"""Encoding and decoding with the two real vocabularies, against llama.cpp's and SentencePiece's own answers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from headrace.core.errors import InvalidRequest
from headrace.core.text_files import TextFiles
from headrace.text import Tokenizer, load_tokenizer


@pytest.fixture(params=["smollm2-135m", "gemma3-270m"])
def real(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    fixture = {"smollm2-135m": "smollm2", "gemma3-270m": "gemma3"}[request.param]
    return request.param, request.getfixturevalue(fixture)


def test_real_vocabularies_encode_like_llama_cpp(real: tuple[str, Tokenizer], vectors: dict[str, Any]) -> None:
    name, tokenizer = real
    for text, ids in zip(vectors["texts"], vectors["models"][name], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, repr(text)


def test_decoding_gives_the_text_back(real: tuple[str, Tokenizer], vectors: dict[str, Any]) -> None:
    _, tokenizer = real
    for text in vectors["texts"]:
        assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == text


def test_a_batch_is_encoded_like_its_texts_alone(real: tuple[str, Tokenizer], vectors: dict[str, Any]) -> None:
    _, tokenizer = real
    batch = tokenizer.encode_batch(vectors["texts"], add_special=True)
    assert batch == [tokenizer.encode(text, add_special=True) for text in vectors["texts"]]


def test_a_long_text_is_encoded_like_its_paragraphs(real: tuple[str, Tokenizer]) -> None:
    """Long texts take another way through the backend."""
    _, tokenizer = real
    part = "The heron stood in the water, as it had all day. "
    alone = tokenizer.encode(part, add_special=False)
    whole = tokenizer.encode(part * 200, add_special=True)
    assert tokenizer.decode(whole) == part * 200
    assert tokenizer.encode_batch([part * 200], add_special=True) == [whole]
    assert whole[len(tokenizer.prefix_ids) :][: len(alone) - 1] == alone[:-1]


def test_threads_share_a_tokenizer(smollm2: Tokenizer, vectors: dict[str, Any]) -> None:
    def there_and_back(text: str) -> bool:
        return smollm2.decode(smollm2.encode(text, add_special=False), skip_special=False) == text

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, vectors["texts"] * 3))


def test_smollm2_ends_with_its_turn_token_and_begins_with_nothing(smollm2: Tokenizer) -> None:
    assert [smollm2.token_text(i) for i in smollm2.eos_ids] == ["<|im_end|>", "<|endoftext|>"]
    assert smollm2.encode("Hi", add_special=True) == smollm2.encode("Hi", add_special=False)
    assert smollm2.special_tokens["bos_token"] == "<|im_start|>"


def test_gemma_begins_with_bos_and_also_ends_at_the_end_of_a_turn(gemma3: Tokenizer) -> None:
    assert gemma3.encode("Hi", add_special=True) == [gemma3.bos_id, *gemma3.encode("Hi", add_special=False)]
    assert [gemma3.token_text(i) for i in gemma3.eos_ids] == ["<eos>", "<end_of_turn>"]


def test_special_tokens_in_a_text_are_read_and_skipped_when_shown(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("a<|im_end|>b", add_special=False)
    assert smollm2.token_id("<|im_end|>") in ids
    assert smollm2.decode(ids) == "ab"
    assert smollm2.decode(ids, skip_special=False) == "a<|im_end|>b"


def test_token_bytes_join_to_the_text(real: tuple[str, Tokenizer]) -> None:
    _, tokenizer = real
    text = "naïve 🦙 日本語\n\tx"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, add_special=True))) == text.encode()


def test_ids_outside_the_vocabulary_add_nothing(real: tuple[str, Tokenizer]) -> None:
    _, tokenizer = real
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.decode([-1, tokenizer.vocab_size + 5]) == ""


def test_half_a_surrogate_pair_is_refused_by_place(smollm2: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"character 2 of the text, U\+D83E"):
        smollm2.encode("ab\ud83e", add_special=False)
    with pytest.raises(InvalidRequest, match="character 0"):
        smollm2.encode_batch(["fine", "\ud83e"], add_special=False)


def test_a_saved_vocabulary_encodes_the_same(smollm2: Tokenizer, vectors: dict[str, Any], tmp_path: Path) -> None:
    smollm2.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(TextFiles(directory=tmp_path))
    assert again.encode_batch(vectors["texts"], add_special=False) == vectors["models"]["smollm2-135m"]
    assert again.decode(again.encode("it's 🦙", add_special=False)) == "it's 🦙"


def test_a_description_names_kind_size_and_ends(smollm2: Tokenizer) -> None:
    assert smollm2.describe() == (
        "byte-level BPE, cut as 'smollm'; 49,152 tokens; begins with <|im_start|> (not added); "
        "ends with <|im_end|>, <|endoftext|>"
    )


@pytest.mark.parametrize("name", ["prefixed", "bare"])
def test_a_small_vocabulary_encodes_like_sentencepiece(
    name: str, vectors: dict[str, Any], sentencepiece_metadata: Callable[[str], dict[str, object]]
) -> None:
    golden = vectors["sentencepiece"][name]
    tokenizer = load_tokenizer(TextFiles(gguf_metadata=sentencepiece_metadata(name)))
    for text, ids in zip(golden["texts"], golden["ids"], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, repr(text)
        assert tokenizer.decode(ids) == text


def test_only_the_first_space_of_a_whole_text_is_the_encoders(
    sentencepiece_metadata: Callable[[str], dict[str, object]],
) -> None:
    tokenizer = load_tokenizer(TextFiles(gguf_metadata=sentencepiece_metadata("prefixed")))
    ids = tokenizer.encode("The end", add_special=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == b" The end"
    assert tokenizer.decode(ids) == "The end"
    assert tokenizer.strips_first_space
