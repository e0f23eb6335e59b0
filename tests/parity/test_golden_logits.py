"""The reference backend says what `transformers` says in fp32: stored logits, no torch needed.

Tolerance: 1e-4, the largest absolute difference of any compared logit, not normalized. The logits reach 35; fp32 itself
is off by about 6e-5 there, measured against float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.executor import ReferenceExecutor
from headrace.model import build_program, open_checkpoint
from headrace.testing.checkpoints import FAMILIES, Family, write_checkpoint
from tests.parity.drive import chunked_logits, whole_logits

GOLDEN = Path(__file__).parents[1] / "golden" / "logits.npz"
TOLERANCE = 1e-4


def opened(path: Path, *, num_blocks: int = 24, block_size: int = 4) -> ReferenceExecutor:
    checkpoint = open_checkpoint(path)
    try:
        return ReferenceExecutor(
            build_program(checkpoint.config), checkpoint, num_blocks=num_blocks, block_size=block_size
        )
    finally:
        checkpoint.close()


def golden(case: str) -> tuple[Sequence[int], dict[str, NDArray[np.generic]]]:
    with np.load(GOLDEN) as file:
        fields = ("tokens", "columns", "logits", "top_ids", "top_logits")
        arrays = {field: file[f"{case}/{field}"] for field in fields}
    return arrays["tokens"].tolist(), arrays


def assert_same(logits: NDArray[np.float32], arrays: dict[str, NDArray[np.generic]]) -> None:
    assert np.abs(logits[:, arrays["columns"]] - arrays["logits"]).max() <= TOLERANCE
    assert np.abs(np.take_along_axis(logits, arrays["top_ids"], axis=1) - arrays["top_logits"]).max() <= TOLERANCE
    best = arrays["top_logits"][:, 0]
    assert np.abs(logits.max(axis=1) - best).max() <= TOLERANCE  # no other id is better than the best


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_matches_transformers(family: Family, tmp_path: Path) -> None:
    executor = opened(write_checkpoint(tmp_path / family, family))
    tokens, arrays = golden(f"tiny-{family}")
    assert_same(whole_logits(executor, tokens), arrays)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_over_shuffled_blocks_match_transformers(family: Family, tmp_path: Path) -> None:
    executor = opened(write_checkpoint(tmp_path / family, family))
    tokens, arrays = golden(f"tiny-{family}")
    assert_same(chunked_logits(executor, tokens, [7, 11, 5, 1], seed=3), arrays)


def test_smollm2_matches_transformers(smollm2_path: Path) -> None:
    tokens, arrays = golden("smollm2-135m")
    executor = opened(smollm2_path)
    assert_same(chunked_logits(executor, tokens, [14, 9, 1], seed=1), arrays)


def test_gemma3_matches_transformers(gemma3_path: Path) -> None:
    tokens, arrays = golden("gemma3-270m")
    executor = opened(gemma3_path)
    assert_same(chunked_logits(executor, tokens, [14, 9, 1], seed=1), arrays)
