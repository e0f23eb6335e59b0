"""What each sequence is charged to its tenant: a forecast when it first runs, set right when it ends.

Owns: `account` and `charge` of every sequence. Called by the scheduler's parts on the engine thread; the shares
themselves are `fairness`', the forecast of an answer's length, which learns from each end, is `forecast`'s.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.sched.fairness import FairShares
from headrace.sched.forecast import OutputForecast
from headrace.sched.sequence import Sequence


class Charges:
    """Charges tenants with the tokens of their sequences."""

    def __init__(self, shares: FairShares, forecast: OutputForecast) -> None:
        self._shares = shares
        self._forecast = forecast

    def join(self, sequence: Sequence) -> None:
        """Open, or share, the account of a new sequence's tenant."""
        sequence.account = self._shares.join(sequence.tenant)

    def begin(self, sequence: Sequence) -> None:
        """Charge what a sequence that runs for the first time is expected to compute."""
        sequence.charge = len(sequence.tokens) - sequence.num_cached + self._forecast.expected(sequence)
        self._shares.charge(sequence.account, sequence.charge)

    def end(self, sequence: Sequence) -> None:
        """Charge an ended sequence with what it has computed, no more and no less."""
        if sequence.first_scheduled_s is not None:
            computed = max(sequence.peak_computed - sequence.num_cached, 0)
            self._shares.charge(sequence.account, computed - sequence.charge)
            if sequence.beams is None:
                self._forecast.note_end(sequence)
        self._shares.leave(sequence.account)

    def check(self, live: Iterable[Sequence]) -> None:
        """Raise AssertionError unless the accounts are those of the live sequences."""
        self._shares.check(sequence.account for sequence in live)
