"""The meter: whose every nanosecond of the engine was.

Owns: what each live request has been charged, and the engine's own accounts. Runs on the network thread, once per step.
Invariant: loading + requests + recomputed + abandoned + idle + cached == the time from the first moment to the last
step's end, to the nanosecond; what `close` has handed out is part of `requests`. None of them is ever negative.

    loading │ idle │ step: a b c │ idle │ step: a c │ step: c d │ …
                     each step divided over its rows by `econ.attribution`

Of every span, idle or not, the rent of the cached blocks that nobody uses is set aside first: `cached`. From there the
request that uses them next is paid for (`econ.rent`), so that its rent is no other's compute.

Steps follow one another, so their spans do not overlap; whatever lies between two is idle. Rows of a request that has
ended meanwhile (its reader left, its text matched a stop string) are charged to nobody: `abandoned`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.core.request import SeqId
from headrace.core.stats import EngineTime
from headrace.core.step import Row
from headrace.econ import FREE, AttributionPolicy, Owed, RentTerms, StepCosts, StepWork, attribute

_NS = 1_000_000_000


class StepMeter:
    """Divides an engine's time over its requests.

    began_s  clock time of the first moment: when loading began
    costs    what things cost in a step, as far as that is known now
    terms    how the rent of cached blocks is reckoned
    """

    def __init__(
        self,
        began_s: float,
        costs: Callable[[], StepCosts],
        policy: AttributionPolicy = AttributionPolicy.EQUAL,
        terms: RentTerms = FREE,
    ) -> None:
        self._costs = costs
        self._policy = policy
        self._terms = terms
        self._num_cached = 0  # blocks at rest
        self._rested = 0  # blocks times nanoseconds, so far
        self._set_aside_ns = self._paid_ns = 0
        self._began_ns = self._until_ns = _to_ns(began_s)
        self._loading_ns = self._requests_ns = self._recomputed_ns = self._abandoned_ns = self._idle_ns = 0
        self._owners: dict[SeqId, SeqId] = {}
        self._charges: dict[SeqId, int] = {}  # by the request's first sequence
        self._prompt_charges: dict[SeqId, int] = {}  # of those: for chunks of its prompt
        self._rents: dict[SeqId, int] = {}  # of those: for cached blocks

    def note_ready(self, now_s: float) -> None:
        """Book the time until now as loading; once, before the first step."""
        self._loading_ns += self._advance(now_s)

    def open(self, seq_ids: range) -> None:
        """Charge the rows of these sequences to one request from now on."""
        first = SeqId(seq_ids.start)
        self._charges[first] = self._prompt_charges[first] = self._rents[first] = 0
        for seq_id in seq_ids:
            self._owners[SeqId(seq_id)] = first

    def read(self, first_id: int) -> int:
        """Return what an open request has been charged so far, in nanoseconds."""
        return self._charges[SeqId(first_id)]

    def read_prompt(self, first_id: int) -> int:
        """Return what of that was for computing its prompt."""
        return self._prompt_charges[SeqId(first_id)]

    def read_rent(self, first_id: int) -> int:
        """Return what of it was the rent of cached tokens."""
        return self._rents[SeqId(first_id)]

    def close(self, seq_ids: range) -> int:
        """Charge the request no more; return its nanoseconds."""
        for seq_id in seq_ids:
            del self._owners[SeqId(seq_id)]
        del self._prompt_charges[SeqId(seq_ids.start)], self._rents[SeqId(seq_ids.start)]
        return self._charges.pop(SeqId(seq_ids.start))

    def note_cached(self, num_cached: int) -> None:
        """So many blocks are at rest from the last booked moment on."""
        self._num_cached = num_cached

    def on_step(
        self, rows: Sequence[Row], began_s: float, ended_s: float, num_resting: int = 0, owed: Sequence[Owed] = ()
    ) -> None:
        """Divide a step that has ended, while which so many blocks were at rest; charge those who began to use any."""
        self._idle_ns += self._advance(began_s)
        self._num_cached = num_resting
        for each in owed:
            self._charge_rent(each)
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
            cached_ns=self._set_aside_ns - self._paid_ns,
            rent_ns=self._paid_ns,
        )

    def note_idle(self, now_s: float) -> None:
        """Book the time until now as idle, while no request is live.

        A step that is still on its way for ended requests loses that time to idle; the sum stays exact.
        """
        self._idle_ns += self._advance(now_s)

    def _charge_rent(self, owed: Owed) -> None:
        """Charge a request for cached blocks; what nobody can be charged for stays set aside."""
        owner = self._owners.get(SeqId(owed.seq_id))
        if owner is None:
            return
        rent_ns = min(self._terms.due_ns(owed, self._costs()), self._set_aside_ns - self._paid_ns)
        self._paid_ns += rent_ns
        self._requests_ns += rent_ns
        self._charges[owner] += rent_ns
        self._rents[owner] += rent_ns

    def _advance(self, to_s: float) -> int:
        """Move on to a moment; return the nanoseconds since the last one, 0 for one already booked, less the rent."""
        to_ns = _to_ns(to_s)
        span_ns = max(to_ns - self._until_ns, 0)
        self._until_ns += span_ns
        self._rested += span_ns * self._num_cached
        rent_ns = self._terms.rent_ns(self._rested) - self._set_aside_ns
        self._set_aside_ns += rent_ns
        return span_ns - rent_ns


def _to_ns(seconds: float) -> int:
    return round(seconds * _NS)
