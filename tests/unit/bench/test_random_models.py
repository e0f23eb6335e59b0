"""Random models of a known shape: made once, opened like any other, refused by name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headrace.app import LLM
from headrace.bench import random_models
from headrace.bench.local import LocalGenerator
from headrace.bench.token_prompts import TokenPrompts
from headrace.core.errors import UnknownModel
from headrace.core.settings import Settings
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.quant.formats import Format


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    small = random_models.SHAPES["llama-1b"] | {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    monkeypatch.setitem(random_models.SHAPES, "small", small)
    return Settings(cache_dir=str(tmp_path), models=("random:small",))


def test_a_random_model_is_written_once_and_opens_like_any_other(settings: Settings, tmp_path: Path) -> None:
    named = random_models.with_random_model(settings)
    path = tmp_path / "random" / "small"
    assert named.models == (f"file:{path}",)
    with open_checkpoint(path) as checkpoint:
        program = build_program(checkpoint.config)
        weights = checkpoint.tensor("model.layers.1.mlp.down_proj.weight")
        assert weights.format is Format.BF16
        assert 0.08 < weights.to_float().std() < 0.13  # 1 / sqrt(96)
        assert program.vocab_size == 300
    made = (path / "model.safetensors").stat().st_mtime_ns
    random_models.with_random_model(settings)
    assert (path / "model.safetensors").stat().st_mtime_ns == made
    assert [entry.name for entry in path.parent.iterdir()] == ["small"]


def test_the_engine_runs_a_model_whose_tokenizer_knows_fewer_tokens(settings: Settings) -> None:
    with LLM(settings=random_models.with_random_model(settings)) as llm:
        assert llm.prompt_vocab_size == 260 < llm.vocab_size
        LocalGenerator(llm).generate_tokens(TokenPrompts(llm.prompt_vocab_size).batch(2, 8, 0), 3)


def test_an_unknown_shape_is_refused_with_the_names_there_are(settings: Settings) -> None:
    with pytest.raises(UnknownModel, match="random:llama-1b"):
        random_models.with_random_model(msgspec.structs.replace(settings, models=("random:llama-9t",)))


def test_other_models_are_left_alone(settings: Settings) -> None:
    plain = msgspec.structs.replace(settings, models=("smollm2-135m",))
    assert random_models.with_random_model(plain) is plain
