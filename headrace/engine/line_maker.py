"""From the records of a scheduler's calls to the lines of a log.

Owns: what live sequences need for that, namely digests of their blocks, tables as last told, and who searches together.
Runs on the log's own thread, records in order. Memory: one entry per live sequence.
"""

from __future__ import annotations

from headrace.core.request import SeqId
from headrace.engine.block_digests import BlockDigests
from headrace.engine.decision_lines import (
    AbortLine,
    ArrivedLine,
    BeamLine,
    BelowLine,
    EndLine,
    ExpireLine,
    Line,
    PauseLine,
    RefusedLine,
    ResultLine,
    RoundLine,
    SearchShape,
    Shorthand,
    SubmitLine,
    TakeLine,
    ends_of,
)
from headrace.engine.recording import (
    Aborted,
    AllAborted,
    Committed,
    Expired,
    FromBelow,
    Paused,
    Planned,
    Record,
    Refused,
    Round,
    StepIdTaken,
    Submitted,
)
from headrace.kv.tiers import Arrived
from headrace.kv.transfer.mover import Fetched, Located, Stored
from headrace.sched import Sequence


class LineMaker:
    """Turns records into lines, in order. Keeps what live sequences need for that."""

    def __init__(self, block_size: int) -> None:
        self._shorthand = Shorthand()
        self._digests = BlockDigests(block_size)
        self._searches: dict[SeqId, list[SeqId]] = {}  # of each beam: all of its search

    def line(self, record: Record) -> Line:
        """Return the line of a record."""
        match record:
            case Planned(now, step, decisions):
                return self._shorthand.plan(now, step, decisions)
            case Committed():
                return self._result(record)
            case FromBelow():
                return _below(record)
            case Submitted(now, sequence) if sequence.seq_id in self._searches:
                return BeamLine(now, sequence.seq_id)
            case Submitted(now, sequence):
                return self._submit(now, sequence)
            case Aborted(seq_id, is_failed):
                self._forget([(seq_id, "")])
                return AbortLine(seq_id, is_failed)
            case Paused(seq_id, is_paused):
                return PauseLine(seq_id, is_paused)
            case Expired(now, events):
                ends = ends_of(events)
                self._forget(ends)
                return ExpireLine(now, ends)
            case AllAborted(is_failed, events):
                ends = ends_of(events)
                self._forget(ends)
                return EndLine(is_failed, ends)
            case StepIdTaken(step_id):
                return TakeLine(step_id)
            case Refused(now, error):
                return RefusedLine(now, error.code, error.message)

    def _submit(self, now: float, sequence: Sequence) -> SubmitLine:
        search, group = None, sequence.beams
        if group is not None:
            search = SearchShape([member.seq_id for member in group.members], group.num_answers)
            self._searches.update(dict.fromkeys(search.members, search.members))
        return SubmitLine(
            now,
            sequence.seq_id,
            sequence.prompt_len,
            sequence.max_tokens,
            self._digests.prompt(sequence.seq_id, sequence.prompt_key),
            self._digests.digest(sequence.namespace.encode()),
            sequence.num_score_top,
            sequence.tenant,
            sequence.priority,
            sequence.is_background,
            sequence.deadline_s,
            sequence.pin_s,
            search,
            sequence.wanted_reach,
            sequence.needs_host,
        )

    def _result(self, record: Committed) -> ResultLine:
        now, step, result, events, rounds = record
        filled: list[tuple[SeqId, str]] = []
        for event in events:
            if event.sample is not None:
                digest = self._digests.push(event.seq_id, event.sample.token_id)
                if digest is not None:
                    filled.append((event.seq_id, digest))
        searches = [self._round(each, filled) for each in rounds]
        ends = ends_of(events)
        self._forget(ends)
        stopped = [event.seq_id for event in events if event.stop_token is not None]
        failed = list(result.failures)
        return ResultLine(now, step.step_id, result.elapsed_s, stopped, failed, filled, ends, searches)

    def _round(self, record: Round, filled: list[tuple[SeqId, str]]) -> RoundLine:
        """Return the line of a round, and add the blocks that it has filled."""
        members = self._searches[record.leader]
        for child, parent, token_id in record.moves:
            if child != parent:
                self._digests.fork(members[child], members[parent])
            if (digest := self._digests.push(members[child], token_id)) is not None:
                filled.append((members[child], digest))
        moves = [(child, parent) for child, parent, _ in record.moves]
        return RoundLine(record.leader, moves, [finish.value for finish in record.finishes])

    def _forget(self, ends: list[tuple[SeqId, str]]) -> None:
        self._shorthand.forget(ends)
        for seq_id, _ in ends:
            self._digests.forget(seq_id)
            if seq_id in self._searches:  # the end of one beam is that of all
                others = self._searches[seq_id]
                self._shorthand.forget((other, "") for other in others)
                for other in others:
                    del self._searches[other]
                    self._digests.forget(other)


def _below(record: FromBelow) -> BelowLine:
    arrived: list[ArrivedLine] = []
    answers: list[bool | float] = []
    for each in record.learned:
        if not isinstance(each, Arrived):
            answers.append(each)
            continue
        match each.result:
            case Located(ticket, count):
                arrived.append(ArrivedLine(each.place, "located", ticket, count))
            case Fetched(ticket, count):
                arrived.append(ArrivedLine(each.place, "fetched", ticket, count))
            case Stored(_, is_kept):
                arrived.append(ArrivedLine(each.place, "stored", 0, int(is_kept)))
    return BelowLine(arrived, answers)
