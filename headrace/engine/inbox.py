"""What other threads want of the engine: sequences to take, sequences to end, and the order to stop.

Owns: the orders that the engine thread has not taken yet, under one lock. An engine without work sleeps here.
Invariant: a sequence is in the inbox, in the scheduler, or refused; after `close` the inbox takes nothing more.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from headrace.core.errors import EngineDead
from headrace.core.request import SeqId
from headrace.sched import Sequence


class Orders(NamedTuple):
    """What the engine thread has to do beside taking sequences.

    pauses     sequence → whether it is to be left out of steps; the last word counts
    questions  to be called between steps, which must not take long
    """

    aborts: list[SeqId]
    pauses: dict[SeqId, bool]
    questions: list[Callable[[], None]]


class Inbox:
    """Commands on their way to the engine thread."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._submitted: deque[Sequence] = deque()
        self._orders = Orders([], {}, [])
        self._is_stopping = False
        self._is_woken = False

    def submit(self, sequences: list[Sequence], check: Callable[[int], None]) -> None:
        """Put in the sequences of one request, all or none. Raises EngineDead, or what `check` raises.

        check  is called with the number of sequences already in the inbox
        """
        with self._wake:
            if self._is_stopping:
                raise EngineDead("the engine has stopped; try again once the server is back")
            check(len(self._submitted))
            self._submitted += sequences
            self._wake.notify()

    def abort(self, seq_ids: Iterable[SeqId]) -> None:
        """Ask for sequences to end."""
        with self._wake:
            self._orders.aborts.extend(seq_ids)
            self._wake.notify()

    def set_paused(self, seq_ids: Iterable[SeqId], *, is_paused: bool) -> None:
        """Ask for sequences to be left out of steps, or not any more."""
        with self._wake:
            self._orders.pauses.update(dict.fromkeys(seq_ids, is_paused))
            self._wake.notify()

    def ask(self, question: Callable[[], None]) -> None:
        """Have something called on the engine thread. Raises EngineDead once the engine is ending."""
        with self._wake:
            if self._is_stopping:
                raise EngineDead("the engine has stopped; try again once the server is back")
            self._orders.questions.append(question)
            self._wake.notify()

    def stop(self) -> None:
        """Ask the engine to end. Idempotent."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()

    def wake(self) -> None:
        """Something else that `rest` is waiting for has come. Any thread."""
        with self._wake:
            self._is_woken = True
            self._wake.notify()

    def rest(self, timeout_s: float) -> None:
        """Wait for an order or a `wake`, those since the last `rest` included, for at most `timeout_s` seconds."""
        with self._wake:
            if not (self._is_woken or self._submitted or any(self._orders) or self._is_stopping):
                self._wake.wait(timeout_s)
            self._is_woken = False

    def take(self, can_work: Callable[[], bool], accept: Callable[[Sequence], None]) -> Orders | None:
        """Hand each submitted sequence to `accept` and return the other orders; None when the engine has to end.

        Waits while there is neither an order nor work. `accept` runs under the lock, so that a sequence is always
        counted either here or in the scheduler.
        """
        with self._wake:
            while not (self._submitted or any(self._orders) or self._is_stopping or can_work()):
                self._wake.wait()
            if self._is_stopping:
                return None
            while self._submitted:
                accept(self._submitted[0])
                self._submitted.popleft()
            orders = self._orders
            if any(orders):
                self._orders = Orders([], {}, [])
            return orders

    def close(self) -> list[Sequence]:
        """Refuse all further sequences and return those that the engine has not taken."""
        with self._wake:
            self._is_stopping = True
            left = list(self._submitted)
            self._submitted.clear()
            return left

    def waiting(self) -> list[Sequence]:
        """Return the sequences on their way; any thread, without the lock, which a stuck engine may hold."""
        return list(self._submitted)  # one call into C: nothing comes between

    def __len__(self) -> int:
        """Count the sequences on their way."""
        return len(self._submitted)
