"""Stand-ins for what a replay cannot run again: places below the pool, and the choice between beams.

Both are told what a log has, and say so when more is asked of them, or less, than was asked when the log was written.
What they are asked by is the code that serves: when to search, to load, to store and to fork is decided anew.
"""

from __future__ import annotations

from collections import deque

from headrace.core.delta import FinishReason
from headrace.core.request import BeamParams
from headrace.core.stats import TierStats
from headrace.engine.decision_lines import ArrivedLine, BelowLine, RoundLine
from headrace.kv.tiers import Arrived, Places
from headrace.kv.transfer.mover import Drop, Fetch, Fetched, Locate, Located, Result, Store, Stored
from headrace.sched import Sequence
from headrace.sched.beams import BeamGroup, Hypothesis, Move


class ToldPlaces(Places):
    """Places that answer what a log says. ValueError where the log has no such answer."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self._answers: deque[bool | float] = deque()
        self._arriving: deque[ArrivedLine] = deque()
        self._stores: list[deque[bytes]] = [deque() for _ in names]  # accepted, in line

    @property
    def num_left(self) -> int:
        """Count what was told and has not been asked for."""
        return len(self._answers) + len(self._arriving)

    def tell(self, line: BelowLine) -> None:
        """Say what the next call is going to learn."""
        self._arriving.extend(line.arrived)
        self._answers.extend(line.answers)

    def is_up(self, place: int) -> bool:
        """Return the next answer."""
        return bool(self._next())

    def has_room(self, place: int) -> bool:
        """Return the next answer."""
        return bool(self._next())

    def fetch_s(self, place: int, num_blocks: int) -> float:
        """Return the next answer."""
        return float(self._next())

    def store(self, place: int, job: Store) -> bool:
        """Return the next answer; what was taken has a result later."""
        is_taken = bool(self._next())
        if is_taken:
            self._stores[place].append(job.key)
        return is_taken

    def take_result(self) -> Arrived | None:
        """Return the next result."""
        if not self._arriving:
            return None
        line = self._arriving.popleft()
        return Arrived(line.place, self._result(line))

    def ask(self, place: int, job: Locate | Fetch | Drop) -> None:
        """Do nothing: the result is in the log, or was never taken in."""

    def skip(self, place: int, num_blocks: int) -> None:
        """Do nothing: nobody counts here."""

    def note_late(self, place: int) -> None:
        """Do nothing: nobody counts here."""

    def stats(self) -> tuple[TierStats, ...]:
        """Return nothing: nobody counts here."""
        return ()

    def _next(self) -> bool | float:
        if not self._answers:
            raise ValueError("the places below the pool were asked more than the log has answers")
        return self._answers.popleft()

    def _result(self, line: ArrivedLine) -> Result:
        match line.kind:
            case "located":
                return Located(line.ticket, line.count)
            case "fetched":
                return Fetched(line.ticket, line.count)
            case "stored":
                if not self._stores[line.place]:
                    raise ValueError(f"place {line.place} has stored a block that it was not given")
                return Stored(self._stores[line.place].popleft(), bool(line.count))


class ToldBeams(BeamGroup):
    """A search that goes on as a log says. ValueError where the log says nothing."""

    __slots__ = ("_told",)

    def __init__(self, members: tuple[Sequence, ...], num_answers: int) -> None:
        super().__init__(BeamParams(width=len(members)), members, num_answers)
        self._told: RoundLine | None = None

    def tell(self, line: RoundLine) -> None:
        """Say how the next round ends."""
        self._told = line

    @property
    def has_left(self) -> bool:
        """Say whether a round was told that did not happen."""
        return self._told is not None and not self.is_over

    def answers(self) -> list[Hypothesis]:
        """Return the answers as far as they are known: how each of them ends."""
        assert self._told is not None
        return [Hypothesis(0.0, (), FinishReason(finish), None) for finish in self._told.finishes]

    def _choose(self) -> list[Move]:
        if self._told is None:
            raise ValueError(f"the search of sequence {self.members[0].seq_id} went on, and the log does not say how")
        if not self._told.moves:
            return []
        moves = [Move(child, parent, 0) for child, parent in self._told.moves]
        self._told = None
        return moves
