"""How far a configuration's next-token distributions are from the base model's: KL, perplexity ratio, same top token.

Pure functions over logits of the same tokens; float64 throughout. Intervals: mean KL and the log perplexity ratio by a
block bootstrap (neighbouring tokens are correlated; a block is one scored chunk), same-top rate by Wilson's interval.
Source: KL and Δp as llama.cpp's perplexity tool defines them; Wilson 1927; Künsch 1989 for the block bootstrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BOOTSTRAP_ROUNDS = 2000
LEAST_BLOCKS = 5  # fewer say nothing of their spread: resampling one gives an interval without width


class Interval(NamedTuple):
    """An estimate with its 95 % confidence interval; no bounds where there were too few blocks to tell."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkScores:
    """Per-token scores of one chunk, each [n] float64: KL(base ‖ test), −ln p of the true token, same top token, Δp."""

    kl: NDArray[np.float64]
    nll_base: NDArray[np.float64]
    nll_test: NDArray[np.float64]
    is_same_top: NDArray[np.bool_]
    delta_p: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Summary over all chunks. Perplexities are exp(mean NLL); `ppl_ratio` is test / base."""

    num_tokens: int
    mean_kl: Interval
    kl_p999: float
    ppl_base: float
    ppl_test: float
    ppl_ratio: Interval
    same_top: Interval
    delta_p_rms: float


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log probabilities [n, V] in float64 of logits [n, V]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def score_chunk(base: NDArray[np.float32], test: NDArray[np.float32], targets: NDArray[np.int64]) -> ChunkScores:
    """Compare logits [n, V] of n positions; targets [n] are the tokens that really follow. Cost: O(n·V) float64."""
    if base.shape != test.shape or base.shape[0] != targets.shape[0]:
        raise ValueError(f"logits {base.shape} and {test.shape} do not cover the same {targets.shape[0]} positions")
    log_p, log_q = log_softmax(base), log_softmax(test)
    rows = np.arange(targets.shape[0])
    p_true, q_true = log_p[rows, targets], log_q[rows, targets]
    return ChunkScores(
        kl=(np.exp(log_p) * (log_p - log_q)).sum(axis=-1),
        nll_base=-p_true,
        nll_test=-q_true,
        is_same_top=log_p.argmax(axis=-1) == log_q.argmax(axis=-1),
        delta_p=np.exp(q_true) - np.exp(p_true),
    )


def block_bootstrap(block_sums: NDArray[np.float64], block_sizes: NDArray[np.float64], seed: int = 0) -> Interval:
    """Return the pooled mean and its 95 % interval by resampling whole blocks. [B] sums and [B] sizes.

    Without bounds below LEAST_BLOCKS blocks.
    """
    mean = float(block_sums.sum() / block_sizes.sum())
    if len(block_sums) < LEAST_BLOCKS:
        return Interval(mean, None, None)
    rng = np.random.Generator(np.random.Philox(seed))
    picks = rng.integers(0, len(block_sums), size=(_BOOTSTRAP_ROUNDS, len(block_sums)))
    means = block_sums[picks].sum(axis=1) / block_sizes[picks].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def _exp(value: float | None) -> float | None:
    return None if value is None else float(np.exp(value))


def wilson(successes: int, trials: int) -> Interval:
    """Return a proportion with Wilson's 95 % interval."""
    z = 1.959963984540054
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * float(np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def summarize(chunks: list[ChunkScores]) -> Comparison:
    """Pool chunks into one Comparison. ValueError when there is nothing to pool."""
    if not chunks:
        raise ValueError("no scored chunk; the text is shorter than two tokens")
    kl = np.concatenate([chunk.kl for chunk in chunks])
    sizes = np.array([len(chunk.kl) for chunk in chunks], dtype=np.float64)
    nll_base = np.array([chunk.nll_base.sum() for chunk in chunks])
    nll_test = np.array([chunk.nll_test.sum() for chunk in chunks])
    log_ratio = block_bootstrap(nll_test - nll_base, sizes)
    same = int(sum(chunk.is_same_top.sum() for chunk in chunks))
    delta_p = np.concatenate([chunk.delta_p for chunk in chunks])
    total = len(kl)
    return Comparison(
        num_tokens=total,
        mean_kl=block_bootstrap(np.array([chunk.kl.sum() for chunk in chunks]), sizes),
        kl_p999=float(np.quantile(kl, 0.999)),
        ppl_base=float(np.exp(nll_base.sum() / total)),
        ppl_test=float(np.exp(nll_test.sum() / total)),
        ppl_ratio=Interval(float(np.exp(log_ratio.value)), _exp(log_ratio.low), _exp(log_ratio.high)),
        same_top=wilson(same, total),
        delta_p_rms=float(np.sqrt((delta_p**2).mean())),
    )
