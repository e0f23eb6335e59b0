"""One step's wall time divided over the requests that shared it, in whole nanoseconds that add up exactly.

Owns nothing; pure functions, called once per step by the ledger's meter.
Invariant: for each step, the members' charges and the pool's charge sum to the step's wall time.

    weight of a prompt chunk = per_prompt_token · p + per_pair · p · (context + p/2)
    weight of a decode token = per_decode_token + per_kv_token · context
    wall time = what the weights explain + the shared part (launch, reading the weights once for all)

The shared part is split equally by default, because the weights are read once whoever is there; by tokens if the policy
says so. Tokens computed again after a preemption are the server's own doing: their part goes to the pool, not to the
request that was in the way. Weights are integers (picoseconds), the division is by largest remainder.
Source: step-time models as in Vidur (Agrawal et al. 2024) and Dynamo's planner; apportionment after Hamilton.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec


class AttributionPolicy(StrEnum):
    """Who pays for what a step costs however many share it."""

    EQUAL = "equal"  # each member the same
    TOKENS = "tokens"  # in proportion to the tokens computed


class StepCosts(msgspec.Struct, frozen=True, kw_only=True):
    """What things cost in a step, in picoseconds, each ≥ 0; fitted while serving or given by the configuration.

    Only their ratios matter for the division: the wall time is measured.
    """

    shared: int = 1_000_000
    per_prompt_token: int = 1_000
    per_pair: int = 0  # one new token attending to one earlier position
    per_decode_token: int = 1_000
    per_kv_token: int = 0  # one cached token read while decoding


class StepWork(NamedTuple):
    """What one member computed in a step.

    start        context before the step, in tokens
    num_tokens   tokens computed, recomputed ones included
    num_again    those of them that had been computed before a preemption
    samples      whether it drew a token
    """

    start: int
    num_tokens: int
    num_again: int = 0
    samples: bool = False

    @property
    def is_decode(self) -> bool:
        """Say whether it goes on with an answer, or computes a prompt: a prompt's last token alone is an answer's."""
        return self.samples and self.num_tokens == 1


class StepCharges(NamedTuple):
    """Nanoseconds of one step: `members` in the order given, and what falls to the pool."""

    members: tuple[int, ...]
    pool: int


def divide(total: int, weights: Sequence[int]) -> list[int]:
    """Divide `total` ≥ 0 in proportion to `weights` ≥ 0 so that the parts add up to it.

    Largest remainder; equal remainders favour the earlier. Without any weight the parts are equal.
    Raises ValueError when there is nobody to take a part.
    """
    if not weights:
        raise ValueError(f"{total} cannot be divided among nobody")
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts = [total * weight // whole for weight in weights]
    missing = total - sum(parts)
    if missing:
        by_remainder = sorted(range(len(parts)), key=lambda i: -(total * weights[i] % whole))
        for index in by_remainder[:missing]:
            parts[index] += 1
    return parts


def attribute(
    wall_ns: int,
    works: Sequence[StepWork],
    costs: StepCosts,
    policy: AttributionPolicy = AttributionPolicy.EQUAL,
) -> StepCharges:
    """Divide `wall_ns` over the members of a step; a step without members falls to the pool whole."""
    if not works:
        return StepCharges((), wall_ns)
    scale = sum(work.num_tokens for work in works) if policy is AttributionPolicy.TOKENS else len(works)
    weights: list[int] = []
    again: list[int] = []
    for work in works:
        num_new = work.num_tokens - work.num_again
        share = work.num_tokens if policy is AttributionPolicy.TOKENS else 1
        shared = costs.shared * share
        # Twice everything: p/2 stays whole. Scaled by the number of shares: so does the shared part.
        anew = _weight(costs, work.start + work.num_again, num_new, samples=work.samples) * scale
        repeated = _weight(costs, work.start, work.num_again, samples=False) * scale
        if work.num_again:
            # A member that only recomputes owes its seat in the step to the preemption too.
            fee = 2 * shared * work.num_again // work.num_tokens
            weights.append(anew + 2 * shared - fee)
            again.append(repeated + fee)
        else:
            weights.append(anew + 2 * shared)
            again.append(0)
    *members, pool = divide(wall_ns, [*weights, sum(again)])
    return StepCharges(tuple(members), pool)


def _weight(costs: StepCosts, start: int, num_tokens: int, *, samples: bool) -> int:
    """Return twice the cost of `num_tokens` after `start`; the last of them is a decode token when it is alone."""
    if not num_tokens:
        return 0
    if samples and num_tokens == 1:
        return 2 * (costs.per_decode_token + costs.per_kv_token * start)
    return 2 * costs.per_prompt_token * num_tokens + costs.per_pair * num_tokens * (2 * start + num_tokens)
