"""Draw tokens from logits. This numpy code is the specification that every native sampler reproduces.

Owns nothing; each row is drawn on its own, so the batch never changes a sample. Called by executors.
For one row of logits l [V] float32:

 1. A NaN or +inf among l, or no finite value, fails the row (a reason is returned, the other rows stand).
 2. Log probabilities, where asked for, come from l as it is: l_t - max(l) - ln Σ exp(l - max(l)), in float64.
 3. z = l, in float32, then in this order:
      repetition r   each id in `history` (prompt and output), once: z / r if z > 0, else z * r
      frequency f    each id in the output part of `history`, c times there: z - f * c
      presence p     each id in the output part of `history`, once: z - p
      logit_bias     z + bias
      banned         z = -inf; no finite value left fails the row
 4. temperature 0: the id of the largest z, the lowest id among equals. Else:
 5. Rank ids by (z falling, id rising). Weights w = exp((z - max z) / temperature) in float64. Each filter works on what
    the one before has left, with its weights renormalized to sum 1 (p below), and keeps the ranking:
      top_k k        the first k
      typical_p t    H = -Σ p ln p; order by |-ln p - H|, equals by rank; the shortest prefix of that order with Σ p ≥ t
      top_p t        the shortest prefix of the ranking with Σ p ≥ t
      min_p m        those with p ≥ m * (largest p)
 6. u = `random.uniform(seed, num_output)`; the draw is the first id in the ranking whose running sum of w, itself
    included, exceeds u * Σw; the last one if rounding leaves none.
Source of the filters: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Meister et al. 2023 (typical),
Nguyen et al. 2024 (min-p), Keskar et al. 2019 (repetition).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.core.request import SamplingParams
from headrace.core.step import Row, Sample, ScoredPosition
from headrace.sampling.random import uniform

Floats = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_FIRST_RANKED = 512  # enough for nearly every draw; all V are ranked only when these do not decide it


def sample_rows(logits: Floats, rows: Sequence[Row]) -> list[Sample | str]:
    """Draw one token for each row; a str in a row's place says why it failed.

    logits  [R, V] float32, one line per row of `rows`, not changed
    rows    each with `sampling` set; `history` where the penalties need it
    """
    return [_sample_row(logits[i], row) for i, row in enumerate(rows)]


def score_token(logits: Floats, token_id: int, num_top: int) -> ScoredPosition:
    """Return the log probability of a known next token and the `num_top` best ones. logits [V] float32."""
    shift = _log_normalizer(logits)
    return ScoredPosition(token_id, float(logits[token_id]) - shift, _best(logits, shift, num_top))


def _sample_row(logits: Floats, row: Row) -> Sample | str:
    params = row.sampling
    if params is None:
        raise ValueError(f"row of sequence {row.seq_id} has no sampling parameters")
    peak = float(logits.max())
    if np.isnan(peak) or np.isinf(peak):
        return f"the model's logits are not finite at position {row.start + len(row.tokens) - 1} (largest is {peak})"
    adjusted = _adjust(logits, row, params)
    if params.temperature == 0.0:
        token_id = int(adjusted.argmax())
        if np.isneginf(adjusted[token_id]):
            return "every token is banned or biased away"
    elif np.isneginf(adjusted.max()):
        return "every token is banned or biased away"
    else:
        token_id = _draw(adjusted, params, uniform(params.seed, row.num_output))
    if params.logprobs is None:
        return Sample(token_id)
    shift = _log_normalizer(logits)
    return Sample(token_id, float(logits[token_id]) - shift, _best(logits, shift, params.logprobs))


def _adjust(logits: Floats, row: Row, params: SamplingParams) -> Floats:
    """Apply penalties, bias and bans; the logits themselves if there are none."""
    if not (params.needs_history or params.logit_bias or row.banned):
        return logits
    z = logits.copy()
    if params.needs_history:
        if row.history is None:
            raise ValueError(f"row of sequence {row.seq_id} has penalties but no history")
        history = np.asarray(row.history, dtype=np.int64)
        if params.repetition_penalty != 1.0:
            seen = np.unique(history)
            values, r = z[seen], np.float32(params.repetition_penalty)
            z[seen] = np.where(values > 0, values / r, values * r)
        produced, counts = np.unique(history[row.prompt_len :], return_counts=True)
        z[produced] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
        z[produced] -= np.float32(params.presence_penalty)
    for token_id, bias in params.logit_bias:
        z[token_id] += np.float32(bias)
    if row.banned:
        z[list(row.banned)] = -np.inf
    return z


def _draw(z: Floats, params: SamplingParams, u: float) -> int:
    """Filter and draw, ranking only the best few ids unless the draw depends on more."""
    size = min(params.top_k, z.size) if params.top_k else z.size
    if params.top_k or params.typical_p < 1.0:
        drawn = _draw_ranked(z, size, None, params, u)
    else:
        weights = np.exp((z.astype(np.float64) - float(z.max())) / params.temperature)
        total = float(weights.sum())
        drawn = _draw_ranked(z, min(_FIRST_RANKED, size), total, params, u)
        if drawn is None:
            drawn = _draw_ranked(z, size, None, params, u)
    assert drawn is not None
    return drawn


def _draw_ranked(z: Floats, size: int, total: float | None, params: SamplingParams, u: float) -> int | None:
    """Draw among the `size` best ids; None if ids beyond them could matter.

    total  weight of all ids; None when the `size` best are all that take part
    """
    ids = _ranking(z, size)
    weights = np.exp((z[ids].astype(np.float64) - float(z[ids[0]])) / params.temperature)
    if params.typical_p < 1.0:
        keep = _typical(weights, params.typical_p)
        ids, weights = ids[keep], weights[keep]
    running = np.cumsum(weights)
    mass = float(running[-1]) if total is None else total
    count = ids.size
    is_cut = total is None  # whether `count` already bounds the candidates
    if params.top_p < 1.0:
        count = int(np.searchsorted(running, params.top_p * mass, side="left")) + 1
        if count > ids.size and not is_cut:
            return None
        count, is_cut = min(count, ids.size), True
    if params.min_p > 0.0:
        above = int(np.count_nonzero(weights[:count] >= params.min_p * weights[0]))
        is_cut = is_cut or above < count
        count = above
        if not is_cut:
            return None
    if is_cut:
        mass = float(running[count - 1])
    place = int(np.searchsorted(running[:count], u * mass, side="right"))
    if place >= count and not is_cut:
        return None
    return int(ids[min(place, count - 1)])


def _typical(weights: Weights, typical_p: float) -> Ids:
    """Return the ranks that locally typical sampling keeps, in ranking order."""
    p = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(p)
        entropy = float(np.where(p > 0, p * surprise, 0.0).sum())
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    count = int(np.searchsorted(np.cumsum(p[order]), typical_p, side="left")) + 1
    return np.sort(order[:count])


def _ranking(z: Floats, size: int) -> Ids:
    """Return the `size` best ids by (z falling, id rising)."""
    if size >= z.size:
        return np.argsort(-z, kind="stable")
    edge = -np.partition(-z, size - 1)[size - 1]
    above = np.flatnonzero(z > edge)
    ids = np.concatenate([above, np.flatnonzero(z == edge)[: size - above.size]])
    ids.sort()
    ranked: Ids = ids[np.argsort(-z[ids], kind="stable")]
    return ranked


def _log_normalizer(logits: Floats) -> float:
    """Return ln Σ exp(logits) in float64."""
    wide = logits.astype(np.float64)
    peak = float(wide.max())
    return peak + float(np.log(np.exp(wide - peak).sum()))


def _best(logits: Floats, shift: float, count: int) -> tuple[tuple[int, float], ...]:
    """Return the `count` likeliest ids with their log probabilities, best first."""
    if count == 0:
        return ()
    return tuple((int(i), float(logits[i]) - shift) for i in _ranking(logits, min(count, logits.size)))
