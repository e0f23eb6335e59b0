"""The places below host memory as the hierarchy meets them: it asks by number, nearest first; they answer in time.

Owns: the movers and the line of their results. Asked on the engine thread alone; movers put results in from theirs.
Invariant: whatever the hierarchy learns that it could not work out itself comes through here, and whoever `watch`es is
told each bit of it, in order, at the moment at which it is learned: told the same again, it decides the same again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from headrace.core.protocols import Clock
from headrace.core.stats import TierStats
from headrace.kv.transfer.mover import Drop, Fetch, Locate, Mover, Result, Store

T = TypeVar("T", bool, float)


class Arrived(NamedTuple):
    """A place's result was taken in."""

    place: int
    result: Result


Learned = Arrived | bool | float  # a result, or the answer to a question


class Places:
    """Movers by number."""

    def __init__(self, movers: Sequence[Mover] = ()) -> None:
        self.names = tuple(mover.name for mover in movers)
        self._movers = tuple(movers)
        self._results: deque[Arrived] = deque()
        self._arrived = threading.Event()
        self._on_result: Callable[[], None] = lambda: None
        self._note: Callable[[Learned], None] | None = None
        for place, mover in enumerate(self._movers):
            mover.deliver = self._receiver(place)

    def watch(self, note: Callable[[Learned], None] | None) -> None:
        """Have `note` told what is learned from now on; None: nobody."""
        self._note = note

    # --- what planning learns ------------------------------------------------------------------------------------

    def is_up(self, place: int) -> bool:
        """Say whether a place is worth asking now."""
        return self._told(self._movers[place].is_up)

    def has_room(self, place: int) -> bool:
        """Say whether a place would take a block to store."""
        return self._told(self._movers[place].has_room)

    def fetch_s(self, place: int, num_blocks: int) -> float:
        """Return the seconds that fetching so many blocks is thought to take."""
        return self._told(self._movers[place].predict_s(num_blocks))

    def store(self, place: int, job: Store) -> bool:
        """Give a place a block to keep; False, and no result will come, if it has no room."""
        return self._told(self._movers[place].submit(job))

    def take_result(self) -> Arrived | None:
        """Return the oldest result that has not been taken in."""
        if not self._results:
            return None
        arrived = self._results.popleft()
        if self._note is not None:
            self._note(arrived)
        return arrived

    # --- what they are told --------------------------------------------------------------------------------------

    def ask(self, place: int, job: Locate | Fetch | Drop) -> None:
        """Put a job in line that is never refused."""
        self._movers[place].submit(job)

    def skip(self, place: int, num_blocks: int) -> None:
        """Count blocks that a place has and that are computed instead, which is faster."""
        self._movers[place].skip(num_blocks)

    def note_late(self, place: int) -> None:
        """Count a request that a place has let wait in vain."""
        self._movers[place].note_late()

    # --- life ----------------------------------------------------------------------------------------------------

    def stats(self) -> tuple[TierStats, ...]:
        """Return the counts of each place. Any thread."""
        return tuple(mover.stats() for mover in self._movers)

    def start(self, on_result: Callable[[], None]) -> None:
        """Start the threads; `on_result` is called on them when there is a result to take."""
        self._on_result = on_result
        for mover in self._movers:
            mover.start()

    def wait(self, timeout_s: float) -> None:
        """Sleep until a result comes, one since the last call included, for at most `timeout_s` seconds."""
        self._arrived.wait(timeout_s)
        self._arrived.clear()

    def stop(self, clock: Clock, until_s: float) -> None:
        """Let each place work off what is in line until then, and end."""
        for mover in self._movers:
            mover.stop(max(until_s - clock.now(), 0.0))

    def _told(self, answer: T) -> T:
        if self._note is not None:
            self._note(answer)
        return answer

    def _receiver(self, place: int) -> Callable[[Result], None]:
        """Return what a mover's thread calls with a result."""

        def receive(result: Result) -> None:
            self._results.append(Arrived(place, result))
            self._arrived.set()
            self._on_result()

        return receive
