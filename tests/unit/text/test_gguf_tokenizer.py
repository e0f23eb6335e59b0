"""What the metadata keys mean, and what is said about metadata that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.errors import ConfigError, ModelFileBroken, UnsupportedModel
from headrace.core.text_files import TextFiles
from headrace.text import Tokenizer, load_tokenizer

Metadata = dict[str, object]


def load(metadata: Metadata, **changes: object) -> Tokenizer:
    named = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    kept = {key: value for key, value in {**metadata, **named}.items() if value is not None}
    return load_tokenizer(TextFiles(gguf_metadata=kept))


def test_merges_are_applied_in_order(byte_level_metadata: Metadata) -> None:
    tokenizer = load(byte_level_metadata)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("hello he", add_special=False)] == [
        "hell",
        "o",
        " ",
        "he",
    ]


def test_a_user_defined_piece_is_text_and_a_control_piece_is_not(byte_level_metadata: Metadata) -> None:
    tokenizer = load(byte_level_metadata)
    ids = tokenizer.encode("<tool>x<|im_end|>", add_special=False)
    assert ids == [261, tokenizer.token_id("x"), 260]
    assert tokenizer.decode(ids) == "<tool>x"


@pytest.mark.parametrize(("pre", "expected"), [("gpt-2", []), ("llama-bpe", [259])])
def test_bos_is_added_by_the_familys_habit(byte_level_metadata: Metadata, pre: str, expected: list[int]) -> None:
    assert load(byte_level_metadata, pre=pre).encode("", add_special=True) == expected


def test_the_file_decides_what_is_added(byte_level_metadata: Metadata) -> None:
    tokenizer = load(byte_level_metadata, add_bos_token=True, add_eos_token=True)
    assert tokenizer.encode("", add_special=True) == [259, 260]
    assert load(byte_level_metadata, pre="llama-bpe", add_bos_token=False).encode("", add_special=True) == []


def test_every_end_token_is_found(byte_level_metadata: Metadata) -> None:
    tokenizer = load(byte_level_metadata, eos_token_id=258, eot_token_id=259)
    assert tokenizer.eos_ids == (258, 259, 260)  # configured, end of turn, and the control token <|im_end|>
    assert {258, 259, 260} <= tokenizer.special_ids


def test_a_turn_token_that_is_ordinary_text_ends_nothing(byte_level_metadata: Metadata) -> None:
    tokenizer = load(byte_level_metadata, eos_token_id=259, token_type=[1] * 259 + [3, 1, 4])
    assert tokenizer.eos_ids == (259,)


def test_a_llama3_word_that_is_a_token_is_taken_whole(byte_level_metadata: Metadata) -> None:
    merges = ["l l", "he ll"]  # "he" cannot be built, so merging alone never reaches "hell"
    built = [
        load(byte_level_metadata, pre=pre, merges=merges).encode("hell", add_special=False)
        for pre in ("gpt-2", "llama-bpe")
    ]
    assert [len(ids) for ids in built] == [3, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, r"tokenizer\.ggml\.tokens' is missing"),
        ({"tokens": []}, "holds no tokenizer"),
        ({"token_type": [1, 1]}, "token_type' has 2 entries for 262 tokens"),
        ({"token_type": ["x"] * 262}, "token_type' holds something other than integers"),
        ({"merges": ["he"]}, "merges' holds 'he', which is not two pieces"),
        ({"merges": ["x yz"]}, "contradicts itself: .*yz"),
        ({"add_bos_token": "yes"}, "add_bos_token' is 'yes'"),
        ({"pre": 3}, "pre' is 3, not a string"),
    ],
)
def test_broken_metadata_is_named(byte_level_metadata: Metadata, changes: Metadata, message: str) -> None:
    with pytest.raises(ModelFileBroken, match=message):
        load(byte_level_metadata, **changes)


def test_a_piece_that_stands_twice_is_named_with_both_ids(byte_level_metadata: Metadata) -> None:
    tokens = [*byte_level_metadata["tokenizer.ggml.tokens"]]  # type: ignore[misc]
    tokens[5] = tokens[9]
    with pytest.raises(ModelFileBroken, match="'\\*' twice, as 5 and 9"):
        load(byte_level_metadata, tokens=tokens)


def test_sentencepiece_without_scores_is_broken(byte_level_metadata: Metadata) -> None:
    with pytest.raises(ModelFileBroken, match="scores' is missing"):
        load(byte_level_metadata, model="llama")


def test_another_kind_of_vocabulary_is_refused_by_name(byte_level_metadata: Metadata) -> None:
    with pytest.raises(UnsupportedModel, match=r"'bert'.*served: gpt2"):
        load(byte_level_metadata, model="bert")


def test_files_that_name_nothing_are_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no tokenizer"):
        load_tokenizer(TextFiles(cache_directory=tmp_path))
