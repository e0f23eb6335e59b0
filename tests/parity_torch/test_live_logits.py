"""The reference backend against `transformers`, live, in fp32: whole logits, longer prompts than the goldens.

Tolerance: 1e-4, the largest absolute difference of any logit, not normalized.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.core.step import Step
from headrace.model import open_checkpoint
from headrace.testing.checkpoints import FAMILIES, Family, write_checkpoint
from headrace.text import load_tokenizer
from tests.golden.make_logits import TEXT
from tests.parity.drive import chunked_logits, fill, shuffled_blocks
from tests.parity.test_golden_logits import GOLDEN, TOLERANCE, opened
from tests.parity_torch.hf_truth import directory_logits, gemma3_logits, gemma3_model, last_logits, smollm2_logits


def worst(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float(np.abs(ours - theirs).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_family_matches_over_150_positions(family: Family, seed: int, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / family, family, seed=seed)
    tokens = np.random.RandomState(seed).randint(0, 256, 150).tolist()
    ours = chunked_logits(opened(directory, num_blocks=60), tokens, [31, 64, 17, 1], seed=seed)
    assert worst(ours, directory_logits(directory, tokens)) <= TOLERANCE


def test_wider_heads_than_hidden_and_grouped_queries_match(tmp_path: Path) -> None:
    shape = {"head_dim": 40, "num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48}
    directory = write_checkpoint(tmp_path / "m", "qwen3", **shape)
    tokens = list(range(30))
    assert worst(chunked_logits(opened(directory), tokens, [30]), directory_logits(directory, tokens)) <= TOLERANCE


def test_a_full_window_is_the_last_w_tokens(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "m", "mistral", sliding_window=1)
    tokens = list(range(20))
    assert worst(chunked_logits(opened(directory), tokens, [6]), directory_logits(directory, tokens)) <= TOLERANCE


def test_smollm2_matches_on_text(smollm2_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    tokens = load_tokenizer(checkpoint.text_files).encode(TEXT * 2, add_special=True)[:64]
    ours = chunked_logits(opened(smollm2_path), tokens, [40, 23, 1], seed=2)
    assert worst(ours, smollm2_logits(checkpoint, tokens)) <= TOLERANCE
    checkpoint.close()


def test_gemma3_matches_on_text(gemma3_path: Path) -> None:
    checkpoint = open_checkpoint(gemma3_path)
    tokens = load_tokenizer(checkpoint.text_files).encode(TEXT * 2, add_special=True)[:64]
    ours = chunked_logits(opened(gemma3_path), tokens, [40, 23, 1], seed=2)
    assert worst(ours, gemma3_logits(checkpoint, tokens)) <= TOLERANCE
    checkpoint.close()


def test_gemma3_is_as_close_to_float64_as_transformers_beyond_its_window(gemma3_path: Path) -> None:
    """At hundreds of positions fp32 itself can stray past the tolerance; the reference may stray no further than HF."""
    checkpoint = open_checkpoint(gemma3_path)
    encoded = load_tokenizer(checkpoint.text_files).encode(TEXT * 20, add_special=True)
    tokens = encoded[:530]  # the window is 512
    executor = opened(gemma3_path, num_blocks=40, block_size=16)
    blocks = shuffled_blocks(executor, len(tokens), 2)
    executor.launch(Step(step_id=0, rows=(fill(0, tokens, 0, 512, blocks),))).result()
    ours = executor.logits(Step(step_id=1, rows=(fill(0, tokens, 512, 530, blocks),)))
    model = gemma3_model(checkpoint)
    single = last_logits(model, tokens, 18)
    double = last_logits(model.double(), tokens, 18)
    assert np.abs(ours - double).max() <= max(TOLERANCE, 1.5 * np.abs(single - double).max())
    assert np.median(np.abs(ours - double)) <= 1e-5
    checkpoint.close()


def test_stored_logits_are_what_transformers_says_today(tmp_path: Path) -> None:
    with np.load(GOLDEN) as file:
        for family in FAMILIES:
            case = f"tiny-{family}"
            live = directory_logits(write_checkpoint(tmp_path / family, family), file[f"{case}/tokens"].tolist())
            assert worst(live[:, file[f"{case}/columns"]], file[f"{case}/logits"]) <= TOLERANCE, family
