"""KL, perplexity and same-top statistics against hand-computed values."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from headrace.cli.eval import _spread
from headrace.evals.compare import block_bootstrap, score_chunk, summarize, wilson


def test_identical_logits_have_zero_divergence_and_ratio_one() -> None:
    logits = np.random.default_rng(1).normal(size=(20, 50)).astype(np.float32)
    result = summarize([score_chunk(logits, logits, np.arange(20))])
    assert result.mean_kl.value == 0.0
    assert result.ppl_ratio == (1.0, None, None)
    assert result.same_top.value == 1.0


def test_kl_of_two_known_distributions() -> None:
    base = np.log(np.array([[0.5, 0.25, 0.25]], dtype=np.float32))
    test = np.log(np.array([[0.25, 0.5, 0.25]], dtype=np.float32))
    scores = score_chunk(base, test, np.array([0]))
    assert scores.kl[0] == pytest.approx(0.5 * np.log(2) - 0.25 * np.log(2), abs=1e-6)
    assert scores.nll_base[0] == pytest.approx(np.log(2), abs=1e-6)
    assert scores.delta_p[0] == pytest.approx(-0.25, abs=1e-6)
    assert not scores.is_same_top[0]


def test_uniform_model_has_perplexity_of_its_vocabulary() -> None:
    logits = np.zeros((10, 64), dtype=np.float32)
    assert summarize([score_chunk(logits, logits, np.arange(10))]).ppl_base == pytest.approx(64.0)


def test_wilson_interval_matches_published_example() -> None:
    share, low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 … 0.3662
    assert share == pytest.approx(0.3080, abs=5e-5)
    assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_bootstrap_interval_covers_the_mean_and_narrows_with_blocks() -> None:
    rng = np.random.default_rng(3)
    few, many = rng.normal(1.0, 0.5, 10), rng.normal(1.0, 0.5, 1000)
    wide = block_bootstrap(few, np.ones(10))
    narrow = block_bootstrap(many, np.ones(1000))
    assert None not in (*wide, *narrow)
    assert wide.low < wide.value < wide.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 3


def test_too_few_blocks_have_a_mean_and_no_bounds() -> None:
    assert block_bootstrap(np.arange(4.0), np.ones(4)) == (1.5, None, None)
    assert None not in block_bootstrap(np.arange(5.0), np.ones(5))


def test_a_comparison_of_one_chunk_says_so_instead_of_an_interval_without_width() -> None:
    rng = np.random.default_rng(5)
    base, test = rng.standard_normal((2, 40, 64), np.float32)
    found = summarize([score_chunk(base, test, np.arange(40))])
    assert (found.mean_kl[1:], found.ppl_ratio[1:]) == ((None, None), (None, None))
    assert found.mean_kl.value > 0
    assert None not in found.same_top
    decoded = msgspec.json.decode(msgspec.json.encode(found))
    assert decoded["mean_kl"][1:] == [None, None]
    assert _spread(found.ppl_ratio) == "fewer than 5 chunks"


def test_mismatched_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="positions"):
        score_chunk(np.zeros((3, 4), np.float32), np.zeros((2, 4), np.float32), np.zeros(3, np.int64))
