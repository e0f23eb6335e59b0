"""Rotation frequencies: every published way of stretching rotary embeddings, worked out once at build time.

Pure functions from `RopeConfig` to `RopeTable`; families call `rope_table`, backends only read the table.
Invariant: with factor 1 every kind yields the default frequencies and a scale of 1.
Source: RoFormer, Su et al. 2021 (default); Chen et al. 2023 (linear); the Llama 3.1 model card's rule (llama3);
YaRN, Peng et al. 2023, §3 (yarn).
"""

from __future__ import annotations

import math
from typing import assert_never

from headrace.model.config import RopeConfig
from headrace.model.program import RopeTable


def rope_table(rope: RopeConfig, *, head_dim: int, max_positions: int) -> RopeTable:
    """Return the frequencies of one head, in radians per position.

    `max_positions` stands in for `original_max_positions` where a checkpoint leaves that out.
    """
    dim = rope.rotary_dim or head_dim
    plain = [rope.theta ** (-i / dim) for i in range(0, dim, 2)]
    trained = rope.original_max_positions or max_positions
    scale = 1.0
    match rope.kind:
        case "default":
            freqs = plain
        case "linear":
            freqs = [freq / rope.factor for freq in plain]
        case "llama3":
            freqs = [_llama3(freq, rope, trained) for freq in plain]
        case "yarn":
            freqs = _yarn(plain, rope, dim, trained)
            scale = rope.attention_factor or _yarn_scale(rope.factor)
        case _:
            assert_never(rope.kind)
    if rope.freq_factors:
        freqs = [freq / factor for freq, factor in zip(freqs, rope.freq_factors, strict=True)]
    return RopeTable(inv_freq=tuple(freqs), scale=scale)


def _llama3(freq: float, rope: RopeConfig, trained: int) -> float:
    """Keep short wavelengths, divide long ones by the factor, blend between.

    turns = how often this pair comes round within the trained context
    turns > high_freq_factor: kept;  turns < low_freq_factor: divided;  between: linear in turns
    """
    turns = trained * freq / (2 * math.pi)
    if rope.high_freq_factor == rope.low_freq_factor:
        kept = float(turns >= rope.high_freq_factor)
    else:
        kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = min(max(kept, 0.0), 1.0)
    return freq * (kept + (1.0 - kept) / rope.factor)


def _yarn(plain: list[float], rope: RopeConfig, dim: int, trained: int) -> list[float]:
    """Divide by the factor what turns fewer than beta_slow times in the trained context, keep what turns more
    than beta_fast times, and blend along the pair index between the two."""
    first = max(math.floor(_pair_that_turns(rope.beta_fast, rope.theta, dim, trained)), 0)
    last = min(math.ceil(_pair_that_turns(rope.beta_slow, rope.theta, dim, trained)), dim - 1)
    span = max(last - first, 0.001)  # both ends on one pair: a step, not a division by zero
    divided = [min(max((i - first) / span, 0.0), 1.0) for i in range(len(plain))]
    return [freq * (1.0 - part + part / rope.factor) for freq, part in zip(plain, divided, strict=True)]


def _pair_that_turns(times: float, theta: float, dim: int, trained: int) -> float:
    """Return the (fractional) pair index whose rotation comes round `times` times in `trained` positions."""
    return dim * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(theta))


def _yarn_scale(factor: float) -> float:
    """Return YaRN's length-dependent temperature, as a factor on cos and sin."""
    return 1.0 if factor <= 1.0 else 0.1 * math.log(factor) + 1.0
