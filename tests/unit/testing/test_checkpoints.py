"""Tiny checkpoints are the same bytes everywhere, and open like any HF directory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from headrace.model import open_checkpoint
from headrace.testing.checkpoints import BOS_ID, FAMILIES, VOCAB_SIZE, Family, write_checkpoint


def test_the_bytes_are_those_that_stored_logits_were_made_from(tmp_path: Path) -> None:
    data = (write_checkpoint(tmp_path, "llama") / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest()[:16] == "1de176bae5a854d9"


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    files = [write_checkpoint(tmp_path / str(s), "llama", seed=s) / "model.safetensors" for s in (0, 1)]
    assert files[0].read_bytes() != files[1].read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_opens_and_reads_back(family: Family, tmp_path: Path) -> None:
    with open_checkpoint(write_checkpoint(tmp_path, family)) as checkpoint:
        assert checkpoint.config.vocab_size == VOCAB_SIZE
        for name in checkpoint.names():
            assert checkpoint.tensor(name).to_float().std() > 0, name


def test_overrides_reach_config_and_shapes(tmp_path: Path) -> None:
    with open_checkpoint(write_checkpoint(tmp_path, "llama", hidden_size=32, num_hidden_layers=3)) as checkpoint:
        assert checkpoint.config.num_layers == 3
        assert checkpoint.tensor("model.layers.2.mlp.down_proj.weight").shape == (32, 96)


def test_the_tokenizer_maps_text_to_its_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(write_checkpoint(tmp_path) / "tokenizer.json"))
    text = "Zürich 水\n<|im_start|>"
    ids = tokenizer.encode(text).ids
    assert ids == [BOS_ID, *"Zürich 水\n".encode(), 258]
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>" + text
