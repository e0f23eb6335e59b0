"""Beam search inside the continuous batch: which continuations of a request's beams live on.

Owns: the sums of log probabilities, the offers of the step just committed and the finished hypotheses of one request.
Called by the scheduler, which owns the beams' sequences and moves their blocks.
Invariant: all beams have the same length. One round: each beam offers its likeliest next tokens; the best `width` that
do not end an answer are the next beams; an end token among the best `width` finishes a hypothesis. Before the first
round only beam 0 is there: the others would be its copies.

    beams   0: a b ──┬─ c (-1.1)          next   0: a b c     keeps its blocks
                     └─ d (-1.3)                 1: a b d     shares a b, its last block is a copy
            1: a e ──── f (-2.9) dropped

The score of a hypothesis is its log probability over its number of tokens to the power of `length_penalty`.
Ties go to the earlier beam, then the lower token id. The search ends once `width` hypotheses are finished and, unless
`early_stopping`, the best beam could not beat the worst of them at its present length.
Source: the rules are those of `transformers.generate(num_beams=…)`, so that answers can be compared.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import NamedTuple

from headrace.core.delta import FinishReason
from headrace.core.request import BeamParams
from headrace.core.step import Sample
from headrace.sched.sequence import Sequence


class Hypothesis(NamedTuple):
    """One finished answer. `tokens` are output tokens, the end token included."""

    score: float
    tokens: tuple[int, ...]
    finish: FinishReason
    stop_token: int | None


class Move(NamedTuple):
    """Beam `child` becomes beam `parent` and one more token. A beam that lives on is its own parent."""

    child: int
    parent: int
    token_id: int


class _Candidate(NamedTuple):
    """Sorts best first."""

    loss: float  # minus the sum of log probabilities
    parent: int
    token_id: int


def num_offered(width: int, num_stop_tokens: int) -> int:
    """Return how many of the likeliest tokens each beam has to offer, so that enough of them do not end it."""
    return max(2 * width, width + num_stop_tokens)


class BeamGroup:
    """The beams of one request; `members[0]` computes the prompt. `num_answers` of `width` hypotheses are wanted."""

    __slots__ = (
        "_finished",
        "_logprobs",
        "_num_finished",
        "_offers",
        "has_forked",
        "is_over",
        "members",
        "num_answers",
        "on_round",
        "params",
        "reserve",
    )

    def __init__(self, params: BeamParams, members: tuple[Sequence, ...], num_answers: int) -> None:
        if len(members) != params.width:
            raise ValueError(f"{len(members)} beams for a width of {params.width}")
        self.params = params
        self.members = members
        self.num_answers = num_answers
        self.has_forked = False
        self.is_over = False  # its beams compute no more; the scheduler's
        self.reserve: list[int] = []  # blocks held for the beams to grow into; the scheduler's
        self.on_round: Callable[[BeamGroup, list[Move]], None] | None = None  # told of each round; a log's
        self._logprobs = [0.0] * params.width
        self._offers: dict[int, Sample] = {}
        self._num_finished = 0
        self._finished: list[tuple[float, int, Hypothesis]] = []  # worst first

    @property
    def is_ready(self) -> bool:
        """Say whether every beam has offered its next tokens."""
        return len(self._offers) == (len(self.members) if self.has_forked else 1)

    def bears_answer(self, sequence: Sequence) -> bool:
        """Say whether one of the answers comes with this sequence's end."""
        return self.members.index(sequence) < self.num_answers

    def offer(self, sequence: Sequence, sample: Sample) -> None:
        """Take in what one beam could go on with: `sample.top`, at least `num_offered` of the likeliest tokens."""
        self._offers[self.members.index(sequence)] = sample

    def advance(self) -> list[Move]:
        """End a round: finish hypotheses, return the moves to the next beams, forks first; none at the search's end."""
        moves = self._choose()
        self._offers.clear()
        self.has_forked |= bool(moves)
        if self.on_round is not None:
            self.on_round(self, moves)
        return moves

    def _choose(self) -> list[Move]:
        """Decide who goes on with what."""
        width, leader = self.params.width, self.members[0]
        ends_at = leader.stop_token_ids
        may_end = leader.num_output >= leader.min_tokens
        best: list[_Candidate] = []
        for rank, candidate in enumerate(sorted(self._candidates())):
            if candidate.token_id not in ends_at:
                best.append(candidate)
                if len(best) == width:
                    break
            elif may_end and rank < width:
                self._finish(candidate, FinishReason.STOP)
        length = leader.num_output + 1
        if self._has_ended(-best[0].loss / length**self.params.length_penalty):
            return []
        if leader.prompt_len + length >= leader.max_len:
            for candidate in best:
                self._finish(candidate, FinishReason.LENGTH)
            return []
        return self._place(best)

    def answers(self) -> list[Hypothesis]:
        """Return the best hypotheses, best first."""
        return [hypothesis for _, _, hypothesis in reversed(self._finished)][: self.num_answers]

    def _candidates(self) -> list[_Candidate]:
        return [
            _Candidate(-(self._logprobs[parent] + logprob), parent, token_id)
            for parent, sample in self._offers.items()
            for token_id, logprob in sample.top
        ]

    def _finish(self, candidate: _Candidate, finish: FinishReason) -> None:
        parent = self.members[candidate.parent]
        tokens = (*parent.tokens[parent.prompt_len :], candidate.token_id)
        score = -candidate.loss / len(tokens) ** self.params.length_penalty
        stop_token = candidate.token_id if finish is FinishReason.STOP else None
        self._num_finished += 1
        # Among equals the earlier one counts as the better.
        insort(self._finished, (score, -self._num_finished, Hypothesis(score, tokens, finish, stop_token)))
        del self._finished[: -self.params.width]

    def _has_ended(self, best_score: float) -> bool:
        if len(self._finished) < self.params.width:
            return False
        return self.params.early_stopping or self._finished[0][0] >= best_score

    def _place(self, best: list[_Candidate]) -> list[Move]:
        """Let the first child of each beam stay where it is; the others take the places of beams that end, first."""
        stay: dict[int, _Candidate] = {}
        others: list[_Candidate] = []
        for candidate in best:
            if candidate.parent in stay:
                others.append(candidate)
            else:
                stay[candidate.parent] = candidate
        vacant = [index for index in range(len(self.members)) if index not in stay]
        placed = {**dict(zip(vacant, others, strict=True)), **stay}
        self._logprobs = [-placed[index].loss for index in range(len(self.members))]
        return [Move(index, candidate.parent, candidate.token_id) for index, candidate in placed.items()]
