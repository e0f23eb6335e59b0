"""Run the scheduler again on what a decision log says went in, and compare what it decides, byte for byte.

Owns one replay. The scheduler, the pool and the prefix cache are the code that serves; the clock is virtual; what the
executor brought is in the log. Tokens are stand-ins: equal blocks of the log become equal blocks here.
A plan or a result is made into a line by the same code that wrote the log; the two lines must be the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from headrace.core.errors import ConfigError
from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Sample, ScoredPosition, Step, StepResult
from headrace.engine.decision_lines import (
    FORMAT,
    AbortLine,
    EndLine,
    ExpireLine,
    Line,
    LogLine,
    LostLine,
    PauseLine,
    PlanLine,
    RefusedLine,
    ResultLine,
    SearchLine,
    Shorthand,
    SubmitLine,
    TakeLine,
    ends_of,
)
from headrace.kv import BlockPool
from headrace.sched import Scheduler, Sequence, SequenceEvent, Urgency
from headrace.sim.step_times import StepTimes, fit, step_terms
from headrace.testing import VirtualClock

_END_TOKEN = -1  # what a sequence draws that ended by a token
_HALF = (1 << 31) - 1
_encode = msgspec.json.encode
_lines: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


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


def read_log(path: Path) -> Iterator[tuple[str, Line]]:
    """Yield (where, line) of an engine's whole log: PATH and the older files beside it that belong to it.

    Raises ConfigError if it is not a log, not whole, or of another format. A last line that was cut off is left out.
    """
    for file in _files_of(path):
        with file.open("rb") as lines:
            for number, text in enumerate(lines, 1):
                if not text.endswith(b"\n"):
                    return  # the process ended while it was written
                where = f"{file}:{number}"
                line = _decode(text, where)
                if not (isinstance(line, LogLine) and line.segment):
                    yield where, line


def replay(lines: Iterable[tuple[str, Line]]) -> ReplayReport:
    """Run a log again. Raises ConfigError where the log cannot be followed."""
    iterator = iter(lines)
    where, head = next(iterator, ("the log", None))
    if not isinstance(head, LogLine):
        raise ConfigError(f"{where}: a decision log begins with a 'log' line")
    if head.has_tiers:
        raise ConfigError(
            f"{where}: this engine kept blocks below the pool, and what came back from there is not in a log; "
            "record without engine.kv_ram_bytes, kv_disk_dir and kv_redis_url to replay"
        )
    return _Replay(head).run(iterator)


def measured_steps(lines: Iterable[tuple[str, Line]], source: str) -> StepTimes:
    """Fit step times to the steps of a log. Raises ConfigError if there are too few."""
    ends: dict[SeqId, int] = {}
    members: list[SeqId] = []
    terms: dict[int, tuple[int, int, int, float]] = {}
    observed: list[tuple[tuple[int, int, int, float], float]] = []
    for _, line in lines:
        if isinstance(line, PlanLine) and line.step_id is not None:
            members = line.members if line.members is not None else members
            changed = {change.seq_id: (change.start, change.count) for change in line.changes}
            parts = [changed.get(seq_id) or (ends[seq_id], 1) for seq_id in members]
            terms[line.step_id] = step_terms(parts)
            ends = {seq_id: start + count for seq_id, (start, count) in zip(members, parts, strict=True)} | {
                seq_id: end for seq_id, end in ends.items() if seq_id not in members
            }
        elif isinstance(line, ResultLine) and line.step_id in terms:
            observed.append((terms.pop(line.step_id), line.elapsed_s))
            for seq_id, _ in line.ends:
                ends.pop(seq_id, None)
    return fit(observed, source)


class _Replay:
    def __init__(self, head: LogLine) -> None:
        self._size = head.block_size
        self._scheduler = Scheduler(BlockPool(head.num_blocks), head.block_size, head.limits)
        self._clock = VirtualClock(float("-inf"))
        self._shorthand = Shorthand()
        self._sequences: dict[SeqId, Sequence] = {}
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
            if isinstance(line, SearchLine):
                raise ConfigError(
                    f"{where}: a beam search begins here, and what it goes on with depends on tokens, which are not in "
                    f"a log; all {self._counts['steps']} steps before are the same"
                )
            try:
                replayed = self._follow(line)
            except (AssertionError, KeyError, ValueError) as err:
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
            case PlanLine():
                return self._plan(line)
            case ResultLine():
                return self._result(line)
            case SubmitLine():
                self._submit(line)
            case AbortLine():
                event = self._scheduler.abort(line.seq_id, "failed" if line.is_failed else None)
                if event is None:
                    return f"sequence {line.seq_id} is not live"
                self._note_ends([event])
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
            case LogLine() | LostLine() | SearchLine():
                return "a line that does not belong here"
        return None

    def _submit(self, line: SubmitLine) -> None:
        size, num_tail = self._size, line.prompt_len - len(line.blocks) * self._size
        if not 0 <= num_tail < size:
            raise ValueError(f"{len(line.blocks)} blocks of {size} tokens for a prompt of {line.prompt_len}")
        prompt = [token for digest in line.blocks for token in stand_in(digest, size)] + [0] * num_tail
        sequence = Sequence(
            line.seq_id,
            prompt,
            SamplingParams(),
            max_tokens=line.max_tokens,
            stop_token_ids=frozenset({_END_TOKEN}),
            prompt_logprobs=line.num_score_top,
            namespace=line.namespace,
            urgency=Urgency(
                tenant=line.tenant,
                priority=line.priority,
                is_background=line.is_background,
                deadline_s=line.deadline_s,
            ),
        )
        self._scheduler.submit(sequence, line.now)
        self._sequences[line.seq_id] = sequence
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
        events = self._scheduler.commit(step, result, line.now)
        for seq_id, digest in line.filled:
            sequence = self._sequences[seq_id]
            end = len(sequence.tokens)
            if end % self._size:
                raise ValueError(f"sequence {seq_id} has {end} tokens, which fill no block")
            sequence.tokens[end - self._size :] = stand_in(digest, self._size)
        return _unless_same(line, msgspec.structs.replace(line, ends=self._note_ends(events)))

    def _note_ends(self, events: Iterable[SequenceEvent]) -> list[tuple[SeqId, str]]:
        ends = ends_of(events)
        self._shorthand.forget(ends)
        for seq_id, finish in ends:
            self._ends[finish] = self._ends.get(finish, 0) + 1
            self._sequences.pop(seq_id, None)
        return ends

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


def _files_of(path: Path) -> list[Path]:
    """Return the files of the engine's life that `path` belongs to, first to last."""
    head = _head(path)
    base = path.name.rstrip("0123456789").removesuffix(".") if path.suffix[1:].isdigit() else path.name
    found: dict[int, Path] = {}
    for other in path.parent.glob(f"{base}*"):
        if other.name == base or other.name.removeprefix(base + ".").isdigit():
            other_head = _head(other)
            if other_head.run == head.run:
                found[other_head.segment] = other
    if sorted(found) != list(range(max(found) + 1)):
        missing = next(i for i in range(max(found) + 1) if i not in found)
        raise ConfigError(
            f"decision log {path}: file {missing} of {max(found) + 1} of this engine's life is gone, and a replay "
            "begins at the beginning; raise engine.decision_log_mib to keep more"
        )
    return [found[segment] for segment in sorted(found)]


def _head(path: Path) -> LogLine:
    try:
        with path.open("rb") as file:
            text = file.readline()
    except OSError as err:
        raise ConfigError(f"decision log {path} cannot be read: {err}") from err
    line = _decode(text, f"{path}:1")
    if not isinstance(line, LogLine):
        raise ConfigError(f"{path}:1 is no head of a decision log")
    if line.format != FORMAT:
        raise ConfigError(f"decision log {path} has format {line.format}; this version replays format {FORMAT}")
    return line


def _decode(text: bytes, where: str) -> Line:
    try:
        return _lines.decode(text)
    except msgspec.MsgspecError as err:
        raise ConfigError(f"{where} is no line of a decision log: {err}") from err
