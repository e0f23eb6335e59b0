"""The meter: whose every nanosecond of the engine was.

Owns: what each live request has been charged, and the engine's own accounts. Runs on the network thread, once per step.
Invariant: loading + requests + recomputed + abandoned + idle == the time from the first moment to the last step's end,
to the nanosecond; what `close` has handed out is part of `requests`.

    loading │ idle │ step: a b c │ idle │ step: a c │ step: c d │ …
                     each step divided over its rows by `econ.attribution`

Steps follow one another, so their spans do not overlap; whatever lies between two is idle. Rows of a request that has
ended meanwhile (its reader left, its text matched a stop string) are charged to nobody: `abandoned`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.core.request import SeqId
from headrace.core.stats import EngineTime
from headrace.core.step import Row
from headrace.econ import AttributionPolicy, StepCosts, StepWork, attribute

_NS = 1_000_000_000


class StepMeter:
    """Divides an engine's time over its requests.

    began_s  clock time of the first moment: when loading began
    costs    what things cost in a step, as far as that is known now
    """

    def __init__(
        self,
        began_s: float,
        costs: Callable[[], StepCosts],
        policy: AttributionPolicy = AttributionPolicy.EQUAL,
    ) -> None:
        self._costs = costs
        self._policy = policy
        self._began_ns = self._until_ns = _to_ns(began_s)
        self._loading_ns = self._requests_ns = self._recomputed_ns = self._abandoned_ns = self._idle_ns = 0
        self._owners: dict[SeqId, SeqId] = {}
        self._charges: dict[SeqId, int] = {}  # by the request's first sequence
        self._prompt_charges: dict[SeqId, int] = {}  # of those: for chunks of its prompt

    def note_ready(self, now_s: float) -> None:
        """Book the time until now as loading; once, before the first step."""
        self._loading_ns += self._advance(now_s)

    def open(self, seq_ids: range) -> None:
        """Charge the rows of these sequences to one request from now on."""
        first = SeqId(seq_ids.start)
        self._charges[first] = self._prompt_charges[first] = 0
        for seq_id in seq_ids:
            self._owners[SeqId(seq_id)] = first

    def read(self, first_id: int) -> int:
        """Return what an open request has been charged so far, in nanoseconds."""
        return self._charges[SeqId(first_id)]

    def read_prompt(self, first_id: int) -> int:
        """Return what of that was for computing its prompt."""
        return self._prompt_charges[SeqId(first_id)]

    def close(self, seq_ids: range) -> int:
        """Charge the request no more; return its nanoseconds."""
        for seq_id in seq_ids:
            del self._owners[SeqId(seq_id)]
        del self._prompt_charges[SeqId(seq_ids.start)]
        return self._charges.pop(SeqId(seq_ids.start))

    def on_step(self, rows: Sequence[Row], began_s: float, ended_s: float) -> None:
        """Divide a step that has ended."""
        self._idle_ns += self._advance(began_s)
        works = [StepWork(row.start, len(row.tokens), row.num_again, row.sampling is not None) for row in rows]
        charges = attribute(self._advance(ended_s), works, self._costs(), self._policy)
        self._recomputed_ns += charges.pool
        owners, by_request = self._owners, self._charges
        for row, work, charge in zip(rows, works, charges.members, strict=True):
            owner = owners.get(row.seq_id)
            if owner is None:
                self._abandoned_ns += charge
                continue
            by_request[owner] += charge
            self._requests_ns += charge
            if not work.is_decode:
                self._prompt_charges[owner] += charge

    def time(self) -> EngineTime:
        """Return the accounts up to the end of the last step."""
        return EngineTime(
            total_ns=self._until_ns - self._began_ns,
            loading_ns=self._loading_ns,
            requests_ns=self._requests_ns,
            recomputed_ns=self._recomputed_ns,
            abandoned_ns=self._abandoned_ns,
            idle_ns=self._idle_ns,
        )

    def note_idle(self, now_s: float) -> None:
        """Book the time until now as idle, while no request is live.

        A step that is still on its way for ended requests loses that time to idle; the sum stays exact.
        """
        self._idle_ns += self._advance(now_s)

    def _advance(self, to_s: float) -> int:
        """Move on to a moment; return the nanoseconds since the last one, 0 for a moment already booked."""
        to_ns = _to_ns(to_s)
        span_ns = max(to_ns - self._until_ns, 0)
        self._until_ns += span_ns
        return span_ns


def _to_ns(seconds: float) -> int:
    return round(seconds * _NS)
