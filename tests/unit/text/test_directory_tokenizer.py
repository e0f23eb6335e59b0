"""Hugging Face directories: which tokens surround a text, which end it, and how its bytes are spelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from headrace.core.errors import ModelFileBroken, UnsupportedModel
from headrace.core.text_files import TextFiles
from headrace.text import Tokenizer, load_tokenizer

BYTES = {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
VOCAB = {"<unk>": 0, "<s>": 1, "</s>": 2, **BYTES, "▁": 259, "a": 260, "b": 261, "▁a": 262}


def llama_like() -> tokenizers.Tokenizer:
    model = models.BPE(vocab=VOCAB, merges=[("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    replace = decoders.Replace("▁", " ")
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in ("<unk>", "<s>", "</s>")])
    return backend


def write(directory: Path, backend: tokenizers.Tokenizer, **files: Any) -> Tokenizer:
    backend.save(str(directory / "tokenizer.json"))
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return load_tokenizer(TextFiles(directory=directory))


def test_text_and_tokens_are_those_of_the_library(tmp_path: Path) -> None:
    backend = llama_like()
    tokenizer = write(tmp_path, backend)
    for text in ("a b", " a", "🦙 a", "a\n</s>b"):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == backend.decode(ids)
        assert tokenizer.decode(ids, skip_special=False) == backend.decode(ids, skip_special_tokens=False)


def test_what_surrounds_a_text_comes_from_the_vocabularys_own_template(tmp_path: Path) -> None:
    backend = llama_like()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = write(tmp_path, backend, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"})
    assert tokenizer.encode("", add_special=True) == [1, 2]
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))


@pytest.mark.parametrize(
    ("name", "adds", "expected"),
    [("LlamaTokenizerFast", True, [1]), ("LlamaTokenizer", False, []), ("PreTrainedTokenizerFast", True, [])],
)
def test_llama_like_classes_say_themselves_whether_bos_is_added(
    tmp_path: Path, name: str, adds: bool, expected: list[int]
) -> None:
    config = {"tokenizer_class": name, "add_bos_token": adds, "bos_token": {"content": "<s>"}}
    assert write(tmp_path, llama_like(), tokenizer_config=config).encode("", add_special=True) == expected


def test_end_tokens_come_from_generation_config_first_and_then_by_name(tmp_path: Path) -> None:
    backend = llama_like()
    backend.add_special_tokens(["<|eot_id|>"])
    tokenizer = write(
        tmp_path,
        backend,
        generation_config={"eos_token_id": [261]},
        config={"eos_token_id": 5},
        special_tokens_map={"eos_token": "</s>"},
    )
    assert tokenizer.eos_ids == (261, 2, 263)
    assert 261 in tokenizer.special_ids


def test_config_names_the_end_where_generation_config_does_not(tmp_path: Path) -> None:
    assert write(tmp_path, llama_like(), generation_config={}, config={"eos_token_id": 5}).eos_ids == (5,)


def test_truncation_in_the_file_is_not_applied(tmp_path: Path) -> None:
    backend = llama_like()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    assert len(write(tmp_path, backend).encode("bbbbbb", add_special=False)) == 7


def test_a_metaspace_vocabulary_gives_its_text_back(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = write(tmp_path, backend)
    assert tokenizer.decode(tokenizer.encode("a b", add_special=False)) == "a b"


def test_byte_level_added_tokens_are_spelled_plainly(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_tokens(["é"])
    tokenizer = write(tmp_path, backend)
    assert tokenizer.decode(tokenizer.encode("aé", add_special=False)) == "aé"


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelFileBroken, match=r"tokenizer\.json' is missing \('tokenizer\.model' alone is not read\)"):
        load_tokenizer(TextFiles(directory=tmp_path))


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", "{"), ("tokenizer_config.json", "[1]")])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    llama_like().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelFileBroken, match=name):
        load_tokenizer(TextFiles(directory=tmp_path))


def test_a_spelling_that_is_not_served_is_named(tmp_path: Path) -> None:
    backend = llama_like()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModel, match="decoder WordPiece"):
        write(tmp_path, backend)
