"""Which of several upstreams gets a request.

Owns nothing but a random stream. Two candidates are drawn by weight and the better one is taken: nearly as even as
looking at all of them, without every gateway running after the same favourite.
Source: Mitzenmacher 2001, "The Power of Two Choices"; peak-EWMA latency as in Finagle.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol, TypeVar, assert_never

from headrace.core.upstream_settings import Choice


class Candidate(Protocol):
    """What a choice looks at."""

    @property
    def weight(self) -> float:
        """Its share."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests it is answering."""
        ...

    @property
    def ttft_s(self) -> float | None:
        """Its smoothed time to first token; None while unknown."""
        ...


CandidateT = TypeVar("CandidateT", bound=Candidate)


class Chooser:
    """Chooses by one rule."""

    def __init__(self, rule: Choice, random: Random) -> None:
        self._rule = rule
        self._random = random

    def choose(self, candidates: Sequence[CandidateT]) -> CandidateT:
        """Return one of `candidates`, at least one."""
        if len(candidates) == 1:
            return candidates[0]
        first = self._draw(candidates)
        if self._rule == "weighted":
            return first
        second = self._draw([candidate for candidate in candidates if candidate is not first])
        return first if self._cost(first) <= self._cost(second) else second

    def _draw(self, candidates: Sequence[CandidateT]) -> CandidateT:
        return self._random.choices(candidates, [candidate.weight for candidate in candidates])[0]

    def _cost(self, candidate: Candidate) -> float:
        load = (candidate.in_flight + 1) / candidate.weight
        match self._rule:
            case "latency":
                return load * (candidate.ttft_s or 0.0)  # one that has not been measured yet is tried
            case "least_load" | "weighted":
                return load
            case never:
                assert_never(never)
