"""Run the scheduler again on what a decision log says went in, and compare what it decides, byte for byte.

Owns one replay. The scheduler, the pool, the prefix cache and the hierarchy of places below the pool are the code that
serves; the clock is virtual; what the executor and the places brought is in the log (`told`). Tokens are stand-ins:
equal blocks of the log become equal blocks here.
A plan or a result is made into a line by the same code that wrote the log; the two lines must be the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from headrace.core.errors import ConfigError
from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Sample, ScoredPosition, Step, StepResult
from headrace.engine.decision_lines import (
    AbortLine,
    BeamLine,
    BelowLine,
    EndLine,
    ExpireLine,
    Line,
    LogLine,
    LostLine,
    PauseLine,
    PlanLine,
    RefusedLine,
    ResultLine,
    Shorthand,
    SubmitLine,
    TakeLine,
    ends_of,
)
from headrace.kv import BlockPool
from headrace.kv.tiers import KeyChain, TierHierarchy
from headrace.sched import Scheduler, Sequence, SequenceEvent, SequenceStatus, Urgency
from headrace.sched.beams import BeamGroup
from headrace.sim.told import ToldBeams, ToldPlaces
from headrace.testing import VirtualClock

_CHAIN = KeyChain(bytes(32), bytes(16))  # names that nobody else sees
_END_TOKEN = -1  # what a sequence draws that ended by a token
_HALF = (1 << 31) - 1
_PLAIN, _NEEDS_HOST = SamplingParams(), SamplingParams(typical_p=0.5)  # how it was drawn matters no more than this
_encode = msgspec.json.encode


class Deviation(msgspec.Struct, frozen=True):
    """Where the scheduler first decided otherwise. `where` names file and line."""

    where: str
    step_id: int | None
    now: float
    logged: str
    replayed: str
    what: str


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay came to; `deviation` is None if every decision was the same."""

    steps: int
    sequences: int
    preemptions: int
    refused: int
    seconds: float
    ends: dict[str, int]
    is_complete: bool  # whether the log goes on to the engine's end
    deviation: Deviation | None = None


def replay(lines: Iterable[tuple[str, Line]]) -> ReplayReport:
    """Run a log again. Raises ConfigError where the log cannot be followed."""
    iterator = iter(lines)
    where, head = next(iterator, ("the log", None))
    if not isinstance(head, LogLine):
        raise ConfigError(f"{where}: a decision log begins with a 'log' line")
    return _Replay(head).run(iterator)


class _Replay:
    def __init__(self, head: LogLine) -> None:
        self._size = head.block_size
        self._places = ToldPlaces(() if head.tiers is None else head.tiers.places)
        tiers = None
        if head.tiers is not None:
            shape = head.tiers
            tiers = TierHierarchy(shape.num_slots, 0, _CHAIN, self._places, copy_s=shape.copy_s, wait_s=shape.wait_s)
        self._scheduler = Scheduler(BlockPool(head.num_blocks), head.block_size, head.limits, tiers)
        self._clock = VirtualClock(float("-inf"))
        self._shorthand = Shorthand()
        self._sequences: dict[SeqId, Sequence] = {}
        self._searches: dict[SeqId, ToldBeams] = {}  # by leader
        self._flying: list[Step] = []
        self._counts = {"steps": 0, "sequences": 0, "refused": 0}
        self._ends: dict[str, int] = {}
        self._first_s: float | None = None
        self._is_complete = False

    def run(self, lines: Iterator[tuple[str, Line]]) -> ReplayReport:
        """Follow the log to its end or to the first deviation."""
        deviation = None
        for where, line in lines:
            if isinstance(line, LostLine):
                raise ConfigError(
                    f"{where}: {line.count} records were lost here, because the disk was slower than the engine; "
                    f"all {self._counts['steps']} steps before are the same, what follows cannot be replayed"
                )
            try:
                replayed = self._follow(line)
            except (AssertionError, LookupError, ValueError) as err:
                replayed = f"{type(err).__name__}: {err}"
            if replayed is not None:
                deviation = self._deviation(where, line, replayed)
                break
        return ReplayReport(
            **self._counts,
            preemptions=self._scheduler.totals.num_preemptions,
            seconds=0.0 if self._first_s is None else self._clock.now() - self._first_s,
            ends=self._ends,
            is_complete=self._is_complete,
            deviation=deviation,
        )

    def _follow(self, line: Line) -> Line | str | None:
        """Do what a line says; return what was done instead, or None if it was that."""
        match line:
            case BelowLine():
                self._places.tell(line)
            case PlanLine():
                return self._plan(line) or self._unasked()
            case ResultLine():
                return self._result(line) or self._unasked()
            case SubmitLine():
                self._submit(line)
            case BeamLine():
                self._take(self._sequences[line.seq_id], line.now)
            case AbortLine():
                events = self._scheduler.abort(line.seq_id, "failed" if line.is_failed else None)
                if not events:
                    return f"sequence {line.seq_id} is not live"
                self._note_ends(events)
            case PauseLine():
                (self._scheduler.pause if line.is_paused else self._scheduler.resume)(line.seq_id)
            case ExpireLine():
                self._move(line.now)
                return _unless_same(line, ExpireLine(line.now, self._note_ends(self._scheduler.expire(line.now))))
            case EndLine():
                self._is_complete = True
                events = self._scheduler.abort_all("failed" if line.is_failed else None)
                return _unless_same(line, EndLine(line.is_failed, self._note_ends(events)))
            case TakeLine():
                return _unless_same(line, TakeLine(self._scheduler.take_step_id()))
            case RefusedLine():
                self._counts["refused"] += 1
            case LogLine() | LostLine():
                return "a line that does not belong here"
        return None

    def _submit(self, line: SubmitLine) -> None:
        size, num_tail = self._size, line.prompt_len - len(line.blocks) * self._size
        if not 0 <= num_tail < size:
            raise ValueError(f"{len(line.blocks)} blocks of {size} tokens for a prompt of {line.prompt_len}")
        prompt = [token for digest in line.blocks for token in stand_in(digest, size)] + [0] * num_tail
        if (search := line.search) is None:
            self._sequences[line.seq_id] = self._sequence(line, line.seq_id, prompt)
        else:
            members = tuple(self._sequence(line, seq_id, prompt) for seq_id in search.members)
            group = ToldBeams(members, search.num_answers)
            for member in members:
                member.beams = group
                self._sequences[member.seq_id] = member
            for member in members[1:]:
                member.status = SequenceStatus.PARKED
                member.tokens = []
            self._searches[line.seq_id] = group
        self._take(self._sequences[line.seq_id], line.now)

    def _sequence(self, line: SubmitLine, seq_id: SeqId, prompt: list[int]) -> Sequence:
        return Sequence(
            seq_id,
            prompt,
            _NEEDS_HOST if line.needs_host else _PLAIN,
            max_tokens=line.max_tokens,
            stop_token_ids=frozenset({_END_TOKEN}),
            prompt_logprobs=line.num_score_top if line.seq_id == seq_id else None,
            namespace=line.namespace,
            pin_s=line.pin_s if line.seq_id == seq_id else 0.0,
            reach=line.reach,
            urgency=Urgency(
                tenant=line.tenant,
                priority=line.priority,
                is_background=line.is_background,
                deadline_s=line.deadline_s,
            ),
        )

    def _take(self, sequence: Sequence, now: float) -> None:
        self._scheduler.submit(sequence, now)
        self._counts["sequences"] += 1

    def _plan(self, line: PlanLine) -> Line | None:
        self._move(line.now)
        step = self._scheduler.schedule(line.now)
        if step is not None:
            self._flying.append(step)
            self._counts["steps"] += 1
        return _unless_same(line, self._shorthand.plan(line.now, step, self._scheduler.decisions))

    def _result(self, line: ResultLine) -> Line | None:
        self._move(line.now)
        step = self._flying.pop(0)
        stopped, failed = set(line.stopped), set(line.failed)
        samples = tuple(_sample(row, stopped, failed) for row in step.rows)
        scored = tuple(tuple(ScoredPosition(token_id, 0.0) for _, token_id in row.score) for row in step.rows)
        failures = dict.fromkeys(line.failed, "failed")
        result = StepResult(line.step_id, samples, scored if any(scored) else (), failures, line.elapsed_s)
        for told in line.rounds:
            self._searches[told.leader].tell(told)
        events = self._scheduler.commit(step, result, line.now)
        for told in line.rounds:
            if self._searches[told.leader].has_left:
                raise ValueError(f"the search of sequence {told.leader} did not go on as the log says")
        for seq_id, digest in line.filled:
            sequence = self._sequences[seq_id]
            end = len(sequence.tokens)
            if end % self._size:
                raise ValueError(f"sequence {seq_id} has {end} tokens, which fill no block")
            sequence.tokens[end - self._size :] = stand_in(digest, self._size)
        return _unless_same(line, msgspec.structs.replace(line, ends=self._note_ends(events)))

    def _unasked(self) -> str | None:
        """Say what was told of the places below the pool and not asked for."""
        count = self._places.num_left
        return f"{count} answers of the places below the pool were not asked for" if count else None

    def _note_ends(self, events: Iterable[SequenceEvent]) -> list[tuple[SeqId, str]]:
        ends = ends_of(events)
        self._shorthand.forget(ends)
        for seq_id, finish in ends:
            self._ends[finish] = self._ends.get(finish, 0) + 1
            sequence = self._sequences.pop(seq_id, None)
            if sequence is not None and sequence.beams is not None:
                self._forget_search(sequence.beams)
        return ends

    def _forget_search(self, group: BeamGroup) -> None:
        """Drop what is known of beams: the end of one is that of all."""
        for member in group.members:
            self._searches.pop(member.seq_id, None)
            if not group.bears_answer(member):
                self._sequences.pop(member.seq_id, None)

    def _move(self, now: float) -> None:
        self._clock.move_to(max(now, self._clock.now()))
        if self._first_s is None:
            self._first_s = now

    def _deviation(self, where: str, line: Line, replayed: Line | str) -> Deviation:
        step_id = line.step_id if isinstance(line, PlanLine | ResultLine | TakeLine) else None
        text = replayed if isinstance(replayed, str) else _encode(replayed).decode()
        return Deviation(where, step_id, self._clock.now(), _encode(line).decode(), text, _difference(line, replayed))


def stand_in(digest: str, block_size: int) -> list[int]:
    """Return tokens for a full block, a function of its digest."""
    number = int(digest, 16)
    return [number & _HALF, number >> 31 & _HALF, *[0] * (block_size - 2)][:block_size]


def _sample(row: Row, stopped: set[SeqId], failed: set[SeqId]) -> Sample | None:
    if row.sampling is None or row.seq_id in failed:
        return None
    return Sample(_END_TOKEN if row.seq_id in stopped else 0)


def _unless_same(logged: Line, replayed: Line) -> Line | None:
    """Return what was replayed if its bytes are others."""
    return None if _encode(logged) == _encode(replayed) else replayed


def _difference(logged: Line, replayed: Line | str) -> str:
    """Name the first field that differs."""
    if isinstance(replayed, str):
        return replayed
    for name in logged.__struct_fields__:
        a, b = getattr(logged, name), getattr(replayed, name)
        if a != b:
            if isinstance(a, list) and isinstance(b, list):
                index = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                a, b = a[index : index + 1], b[index : index + 1]
                return f"{name}[{index}]: logged {a}, replayed {b}"
            return f"{name}: logged {a}, replayed {b}"
    return "the same fields, spelled otherwise"
