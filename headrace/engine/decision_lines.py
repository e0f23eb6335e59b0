"""The lines of a decision log, and the shorthand that keeps them short.

Values, and one encoder that is used for writing and for replaying alike: a decision is the same when its line is the
same, byte for byte. A line is a JSON array whose first element names its kind; a file begins with a `log` line.

    log      what engine this was        submit  a sequence came       plan  rows, copies and decisions of a step
    result   what a step brought         beam    one more of a search  take  a step id used by warm-up
    abort, pause, expire, end            lost    records that did not fit the ring
    below    what the next plan or result learned from the places below the pool
    refused  a request that was not let in: told, not replayed

Tokens are not in a log: a full block of them is there as a keyed digest, of which the key is not kept, so that equal
blocks are equal in the log and nothing else can be learned.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from headrace.core.request import SeqId, WantedReach
from headrace.core.step import Step
from headrace.kv.tiers import TierShape
from headrace.sched import SchedulerLimits, SequenceEvent
from headrace.sched.decisions import Decision

FORMAT = 2


class _Line(msgspec.Struct, frozen=True, array_like=True):
    """One line; fields in this order after the kind."""


class LogLine(_Line, frozen=True, tag="log"):
    """The head of a file: `run` is one engine's life, `segment` the number of the file in it."""

    format: int
    version: str
    run: str
    segment: int
    num_blocks: int
    block_size: int
    limits: SchedulerLimits
    tiers: TierShape | None = None


class SearchShape(msgspec.Struct, frozen=True, array_like=True):
    """A beam search: its beams, the first of which reads the prompt, and how many of them bear an answer."""

    members: list[SeqId]
    num_answers: int


class SubmitLine(_Line, frozen=True, tag="submit"):
    """A sequence. `blocks` are the digests of the prompt's full blocks, `namespace` is one, too.

    search  of the first beam of a search; the others come as `beam` lines
    reach   window and sinks, as far as the request asked for its own
    needs_host  how it samples keeps it from being planned ahead
    """

    now: float
    seq_id: SeqId
    prompt_len: int
    max_tokens: int
    blocks: list[str]
    namespace: str
    num_score_top: int | None
    tenant: str
    priority: int
    is_background: bool
    deadline_s: float | None
    pin_s: float
    search: SearchShape | None
    reach: WantedReach | None
    needs_host: bool = False


class BeamLine(_Line, frozen=True, tag="beam"):
    """A beam that a `submit` line has named."""

    now: float
    seq_id: SeqId


class RowChange(msgspec.Struct, frozen=True, array_like=True):
    """A row that does more than compute the one token after its last; the first `num_kept` blocks are as they were."""

    seq_id: SeqId
    start: int
    count: int
    num_kept: int
    blocks: tuple[int, ...]


class PlanLine(_Line, frozen=True, tag="plan"):
    """A step, or None. `members` in row order, None if they are those of the last step; `copies` as in the step."""

    now: float
    step_id: int | None
    members: list[SeqId] | None
    changes: list[RowChange]
    copies: list[tuple[int, int, int]]
    decisions: list[Decision]


class RoundLine(msgspec.Struct, frozen=True, array_like=True):
    """A round of a search: each [beam, beam that it goes on from], in order; or at its end each answer's finish."""

    leader: SeqId
    moves: list[tuple[int, int]]
    finishes: list[str]


class ResultLine(_Line, frozen=True, tag="result"):
    """What came of a step. Sequences that drew an end token, or failed; blocks that are full now; who has ended how."""

    now: float
    step_id: int
    elapsed_s: float
    stopped: list[SeqId]
    failed: list[SeqId]
    filled: list[tuple[SeqId, str]]
    ends: list[tuple[SeqId, str]]
    rounds: list[RoundLine]


class ArrivedLine(msgspec.Struct, frozen=True, array_like=True):
    """A place's result: so many leading blocks located or fetched, or the oldest block in line stored (1) or not."""

    place: int
    kind: Literal["located", "fetched", "stored"]
    ticket: int
    count: int


class BelowLine(_Line, frozen=True, tag="below"):
    """Results in the order in which they were taken in, and answers in the order of the questions."""

    arrived: list[ArrivedLine]
    answers: list[bool | float]


class AbortLine(_Line, frozen=True, tag="abort"):
    """A sequence was ended from outside."""

    seq_id: SeqId
    is_failed: bool


class PauseLine(_Line, frozen=True, tag="pause"):
    """A sequence's reader has fallen behind, or has caught up."""

    seq_id: SeqId
    is_paused: bool


class ExpireLine(_Line, frozen=True, tag="expire"):
    """Deadlines have passed."""

    now: float
    ends: list[tuple[SeqId, str]]


class EndLine(_Line, frozen=True, tag="end"):
    """The engine ended, and with it all that was left."""

    is_failed: bool
    ends: list[tuple[SeqId, str]]


class TakeLine(_Line, frozen=True, tag="take"):
    """A step id was used up."""

    step_id: int


class LostLine(_Line, frozen=True, tag="lost"):
    """So many records did not fit into the ring: what follows cannot be replayed."""

    count: int


class RefusedLine(_Line, frozen=True, tag="refused"):
    """A request was refused at the door, with the numbers in the message."""

    now: float
    code: str
    message: str


Line = (
    LogLine
    | SubmitLine
    | BeamLine
    | PlanLine
    | BelowLine
    | ResultLine
    | AbortLine
    | PauseLine
    | ExpireLine
    | EndLine
    | TakeLine
    | LostLine
    | RefusedLine
)


def ends_of(events: Iterable[SequenceEvent]) -> list[tuple[SeqId, str]]:
    """Return who has ended, and how."""
    return [(event.seq_id, event.finish.value) for event in events if event.finish is not None]


class Shorthand:
    """Makes plan lines by what has changed since the last. Memory: one entry per live sequence."""

    def __init__(self) -> None:
        self._known: dict[SeqId, tuple[int, tuple[int, ...]]] = {}  # computed tokens and block table
        self._members: list[SeqId] = []

    def plan(self, now: float, step: Step | None, decisions: Iterable[Decision]) -> PlanLine:
        """Return the line of a plan."""
        if step is None:
            return PlanLine(now, None, None, [], [], list(decisions))
        changes: list[RowChange] = []
        known = self._known
        for row in step.rows:
            seq_id, start, count, blocks = row.seq_id, row.start, len(row.tokens), row.blocks
            end, table = known.get(seq_id, (-1, ()))
            if count != 1 or start != end or blocks is not table:
                num_kept = _num_equal(table, blocks)
                if count != 1 or start != end or num_kept != len(table) or num_kept != len(blocks):
                    changes.append(RowChange(seq_id, start, count, num_kept, blocks[num_kept:]))
            known[seq_id] = (start + count, blocks)
        members = [row.seq_id for row in step.rows]
        is_same = members == self._members
        self._members = members
        copies = [(int(copy.kind), copy.source, copy.target) for copy in step.copies]
        return PlanLine(now, step.step_id, None if is_same else members, changes, copies, list(decisions))

    def forget(self, ends: Iterable[tuple[SeqId, str]]) -> None:
        """Drop what is known of sequences that have ended."""
        for seq_id, _ in ends:
            self._known.pop(seq_id, None)


def _num_equal(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Count the leading blocks that two tables share."""
    if b[: len(a)] == a:
        return len(a)
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
