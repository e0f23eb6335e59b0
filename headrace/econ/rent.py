"""Rent: what the memory of cached prefixes costs while nobody uses it, and who pays for it.

Owns nothing; pure functions of whole numbers. A cached block that no running request holds keeps its place from
others. Its rent is that place's share of the machine's time, times the part of the machine that memory is:

    rent [ns] = time unused [ns] · 1 block / blocks of the pool · memory's part

What rests is set aside from each nanosecond as it passes, so compute and rent never charge the same time twice. The
request that uses a block next pays what the block has been resting for; those that begin to use it in the same step pay
equal parts. Nobody pays for what is evicted unused: it stays with the pool.
Invariant: what requests pay is at most what was set aside, since both are rounded down.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from headrace.econ.attribution import StepCosts, divide

_MILLION = 1_000_000
_PS_PER_NS = 1_000


class RentPolicy(StrEnum):
    """How much of the rent due for cached tokens their next user pays; the rest is the pool's."""

    CAPPED = "capped"  # at most what computing them again would have taken
    FULL = "full"
    NONE = "none"  # cached tokens are free


class Owed(NamedTuple):
    """What a request has begun to use: blocks times the nanoseconds that they were resting, and cached tokens."""

    seq_id: int
    block_ns: int
    num_tokens: int


class RentTerms(NamedTuple):
    """How rent is reckoned for one pool. `millionths` of the machine are memory."""

    policy: RentPolicy
    millionths: int
    num_blocks: int

    @classmethod
    def of(cls, policy: RentPolicy, memory_share: float, num_blocks: int) -> RentTerms:
        """Make terms; without a policy nothing is set aside."""
        return cls(policy, 0 if policy is RentPolicy.NONE else round(memory_share * _MILLION), num_blocks)

    def rent_ns(self, block_ns: int) -> int:
        """Return the rent of so many blocks times nanoseconds."""
        return block_ns * self.millionths // (self.num_blocks * _MILLION)

    def due_ns(self, owed: Owed, costs: StepCosts) -> int:
        """Return what a request pays for what it has begun to use."""
        rent_ns = self.rent_ns(owed.block_ns)
        if self.policy is RentPolicy.CAPPED:
            return min(rent_ns, compute_ns(owed.num_tokens, costs))
        return rent_ns


FREE = RentTerms(RentPolicy.NONE, 0, 1)


def compute_ns(num_tokens: int, costs: StepCosts) -> int:
    """Return what computing a prompt's first tokens takes, beside the shared part of a step."""
    twice = 2 * costs.per_prompt_token * num_tokens + costs.per_pair * num_tokens * num_tokens
    return twice // (2 * _PS_PER_NS)


def share_rent(dues: dict[int, int], users: list[tuple[int, list[int]]]) -> list[int]:
    """Divide what blocks have been resting for over those that begin to use them; return their parts in order.

    dues   nanoseconds by block
    users  an id and the blocks that it uses, each
    """
    if len(users) == 1:
        return [sum(dues.values())]
    using: dict[int, list[int]] = {}
    for place, (_, blocks) in enumerate(users):
        for block in blocks:
            if block in dues:
                using.setdefault(block, []).append(place)
    together: dict[tuple[int, ...], int] = {}
    for block, places in using.items():
        together[tuple(places)] = together.get(tuple(places), 0) + dues[block]
    parts = [0] * len(users)
    for places_of, rest_ns in together.items():
        for place, part in zip(places_of, divide(rest_ns, [1] * len(places_of)), strict=True):
            parts[place] += part
    return parts
