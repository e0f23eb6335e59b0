"""Who may begin, decided by the database: commands of all requests, gathered into batches, one transaction each.

Owns the queue of commands and this gateway's live grants. One batch is under way at a time, so commands gather while
the one before is written; a request that they grant is written down before it begins. A settlement by itself
starts no batch before the next beat (`store.beats`). Callers that ask again and again are granted at once, out of
what was lent for them before (`admission.allowances`); that is written down with the next batch.

    stage ─ reserve ─► allowance ─► Granted, written with the next beat
               └─────► queue ─► batch ─► one transaction ─► Granted or refusal
          ─ settle ──► queue          (not waited for)

Leases: a live grant is renewed every third of a lease, with how far it is. A gateway that is gone renews nothing; any
gateway then releases its reservations. One that cannot renew stops its streams under hard budgets before that.
Without the database: hard budgets refuse (503); other limits are kept by this process alone; settlements are kept in
memory, MAX_LATE at most, and written when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from headrace.core.errors import BudgetExceeded, HeadraceError, RateLimited, StoreUnavailable
from headrace.core.protocols import Clock
from headrace.core.stats import AdmissionStats
from headrace.gateway.admission.allowances import IDLE_S, SHARE, Allowances, Turns
from headrace.gateway.admission.asks import Ask, Granted
from headrace.gateway.admission.batch import Answer, Batch, Command, Renew, Reserve, Settle, expire
from headrace.gateway.admission.book import Book, Reservation, begun
from headrace.gateway.admission.fullness import Fullness
from headrace.gateway.admission.lending import Turned
from headrace.gateway.admission.swap import Swap
from headrace.gateway.admission.upkeep import database_ahead_ns, find_expired, forget_old
from headrace.gateway.budgets.price import TokenCounts
from headrace.gateway.budgets.settlement import Settlement
from headrace.gateway.store import Database, Deadlock
from headrace.gateway.store.beats import BEAT_S, until_beat
from headrace.obs import tag_logs

MAX_BATCH = 256
MAX_LATE = 100_000
RETRY_S = 0.5
_UPKEEP_S = 3600.0
_NS = 10**9
_log = logging.getLogger(__name__)


class Grant(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """One request that may run. Its stage keeps `num_output` up to date; the authority keeps the lease."""

    ask: Ask
    granted: Granted
    reservation: Reservation
    lease_until_s: float
    num_output: int = 0
    has_input: bool = False
    is_shadow: bool = False
    is_written: bool = True

    def progress(self) -> TokenCounts:
        """Return what is known to be done."""
        return TokenCounts(input_uncached=self.ask.num_input if self.has_input else 0, output_text=self.num_output)


class _Queued(msgspec.Struct, eq=False):
    command: Command
    answer: asyncio.Future[Answer] | None


@dataclass(slots=True)
class _Counts:
    """What the authority has done."""

    batches: int = 0
    commands: int = 0
    expired: int = 0
    shadowed: int = 0
    failures: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    charged_nano: dict[str, int] = field(default_factory=dict)


class Authority:
    """Grants and settles. One per gateway process."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        lease_s: float,
        settle_s: float = BEAT_S,
        lend_share: int = SHARE,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Make an authority. `settle_s` is the time between two beats; `lend_share`: see `Allowances`."""
        self._database = database
        self._swap = Swap(database) if database.dialect == "postgres" else None
        self._settle_s = settle_s
        self._clock = clock
        self._wall_ns = wall_ns
        self._ahead_ns = 0
        self._lease_s = lease_s
        self._queue: deque[_Queued] = deque()
        self._num_asking = 0
        self._is_closing = False
        self._timer: asyncio.TimerHandle | None = None
        self._worker: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._live: dict[str, Grant] = {}
        self._allowances = Allowances(lease_s, self._vouch, lend_share)
        self._idle: asyncio.TimerHandle | None = None
        self._batch = asyncio.Lock()
        self._shadow = Book()
        self._counts = _Counts()
        self._fullness = Fullness()

    def stats(self) -> AdmissionStats:
        """Return what has been done so far."""
        counts = self._counts
        return AdmissionStats(
            live=len(self._live),
            late=len(self._queue) + self._allowances.num_unwritten,
            allowances=len(self._allowances),
            drawn=self._allowances.num_drawn,
            batches=counts.batches,
            commands=counts.commands,
            expired=counts.expired,
            shadowed=counts.shadowed,
            failures=counts.failures,
            refused=dict(counts.refused),
            charged_nano=dict(counts.charged_nano),
            budget_used=self._fullness.read(self.now_ns()),
        )

    def now_ns(self) -> int:
        """Return Unix nanoseconds by the clock that all gateways of this database share."""
        return self._wall_ns() + self._ahead_ns

    async def open(self) -> None:
        """Set the clock by the database, release what others left behind, keep leases from now on."""
        self._is_closing = False
        await self.sweep()
        self._keeper = asyncio.ensure_future(self._keep())

    async def close(self) -> None:
        """Write what is queued; what cannot be written is told in the log."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._is_closing = True
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._allowances.give_back() or self._queue:
            self._start()
        if self._worker is not None:
            await asyncio.wait((self._worker,), timeout=2 * RETRY_S + 5.0)
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue:
            _log.error("%d settlements could not be written; their reservations expire by themselves", len(self._queue))

    async def reserve(self, ask: Ask) -> Grant:
        """Let a request begin. Raises RateLimited, TaskExhausted, BudgetExceeded or StoreUnavailable."""
        if len(self._queue) >= MAX_LATE:
            raise StoreUnavailable(f"{len(self._queue):,} settlements wait for the database; no more are taken on")
        now_ns = self.now_ns()
        drawn = self._allowances.try_draw(ask, self._clock.now(), now_ns)
        if drawn is not None:
            granted, reservation, until_s = drawn
            self._live[ask.id] = grant = Grant(
                ask=ask, granted=granted, reservation=reservation, lease_until_s=until_s, is_written=False
            )
            if self._allowances.is_urgent:
                self._start()
            elif self._timer is None:
                self._start_soon()
            return grant
        try:
            return await self._ask_database(ask)
        except (BudgetExceeded, RateLimited):
            if not self._allowances.give_back((ask,)):
                raise
        return await self._ask_database(ask)  # once more, with all that this gateway had kept for itself

    async def _ask_database(self, ask: Ask) -> Grant:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append(_Queued(Reserve(ask), answer))
        self._num_asking += 1
        self._start()
        try:
            granted = await asyncio.shield(answer)  # a cancelled caller must not take the answer along
        except asyncio.CancelledError:
            answer.add_done_callback(partial(self._give_back, ask))
            raise
        except StoreUnavailable:
            if ask.is_hard:
                raise
            return self._reserve_alone(ask)
        if isinstance(granted, HeadraceError):
            self._counts.refused[granted.code] = self._counts.refused.get(granted.code, 0) + 1
            raise granted
        assert isinstance(granted, Granted)
        if self._allowances.note(ask, self._clock.now()):
            if self._timer is None:
                self._start_soon()
            if self._idle is None:
                self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._look_idle)
        now_ns = self.now_ns()
        self._fullness.note(ask.budgets, granted.spent_nano, now_ns)
        return self._begin(ask, granted, now_ns, self._clock.now() + self._lease_s * 0.9)

    def settle(self, grant: Grant, settlement: Settlement) -> None:
        """End a request. Takes effect with the next batch; not waited for."""
        self._live.pop(grant.ask.id, None)
        if settlement.cost_nano:
            charged = self._counts.charged_nano
            charged[settlement.model] = charged.get(settlement.model, 0) + settlement.cost_nano
        if grant.is_shadow:
            self._shadow.settle(grant.reservation, settlement, self.now_ns())
            self._shadow.settlements.clear()
        self._queue.append(_Queued(Settle(grant.reservation, settlement), None))
        if self._timer is None:
            self._start_soon()

    def is_lost(self, grant: Grant) -> bool:
        """Say whether a request must stop because nobody vouches for its money any more."""
        return grant.ask.is_hard and self._clock.now() >= grant.lease_until_s

    def _begin(
        self, ask: Ask, granted: Granted, now_ns: int, lease_until_s: float, *, is_shadow: bool = False
    ) -> Grant:
        reservation = begun(ask, granted.granted_nano, granted.holds, now_ns, int(self._lease_s * _NS))
        grant = Grant(
            ask=ask, granted=granted, reservation=reservation, lease_until_s=lease_until_s, is_shadow=is_shadow
        )
        self._live[ask.id] = grant
        return grant

    def _vouch(self, ask_id: str, until_s: float) -> None:
        """Hear that a request out of an allowance may run until then."""
        grant = self._live.get(ask_id)
        if grant is not None:
            grant.is_written, grant.lease_until_s = True, until_s

    def _look_idle(self) -> None:
        """Give allowances back that nobody uses."""
        self._idle = None
        if self._allowances.give_back_idle():
            self._start()
        if len(self._allowances):
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._look_idle)

    def _reserve_alone(self, ask: Ask) -> Grant:
        """Keep limits by this process alone while there is no database."""
        self._counts.shadowed += 1
        try:
            granted = self._shadow.reserve(ask, self.now_ns(), int(self._lease_s * _NS))
        except HeadraceError as refusal:
            self._counts.refused[refusal.code] = self._counts.refused.get(refusal.code, 0) + 1
            raise
        return self._begin(ask, granted, self.now_ns(), self._clock.now() + self._lease_s * 0.9, is_shadow=True)

    def _give_back(self, ask: Ask, answer: asyncio.Future[Answer]) -> None:
        """Release what was granted to a caller that did not wait for it."""
        granted = None if answer.cancelled() or answer.exception() is not None else answer.result()
        if isinstance(granted, Granted):
            grant = self._begin(ask, granted, self.now_ns(), 0.0)
            self.settle(grant, aborted(grant, self.now_ns()))

    def _start_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(until_beat(loop.time(), self._settle_s), self._start)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        tag_logs(None)  # begun by one request, works for all
        is_due = True
        while (self._queue or self._allowances.is_due) and (is_due or self._num_asking or self._is_closing):
            is_due = len(self._queue) > MAX_BATCH
            async with self._batch:
                is_up = await self._work_once()
            if not is_up:
                is_due = True
                if self._queue or self._allowances.is_due:
                    await asyncio.sleep(RETRY_S)
        if (self._queue or self._allowances.is_due) and self._timer is None:
            self._start_soon()

    async def _work_once(self) -> bool:
        """Carry out one batch; say whether the database answered."""
        taken = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
        self._num_asking -= sum(queued.answer is not None for queued in taken)
        turns, asked_s = self._allowances.take_turns(), self._clock.now()
        try:
            answers = await self._carry_out([*(turn for _, turn in turns), *(queued.command for queued in taken)])
        except StoreUnavailable as err:
            self._counts.failures += 1
            for kind, _ in turns:
                self._allowances.restore(kind)
            self._refuse_for_now(taken, err)
            return False
        except Exception as err:  # ours: no request may wait for ever because of it
            _log.exception("a batch of %d commands failed", len(taken))
            for kind, turn in turns:
                self._allowances.drop(kind, turn, asked_s)
            if len(taken) > 1:
                return await self._one_by_one(taken)
            _answer_all(taken, err)
            return True
        self._counts.batches += 1
        self._counts.commands += len(taken) + sum(len(turn.draws) for _, turn in turns)
        if self._shadow.tracks or self._shadow.spends:
            self._shadow = Book()
        self._apply(turns, answers, asked_s)
        for queued, answer in zip(taken, answers[len(turns) :], strict=True):
            if queued.answer is not None and not queued.answer.done():
                queued.answer.set_result(answer)
        return True

    async def _one_by_one(self, taken: list[_Queued]) -> bool:
        """Carry out a batch that failed: what is at fault must not take the others' rows along."""
        for place, queued in enumerate(taken):
            try:
                (answer,) = await self._carry_out([queued.command])
            except StoreUnavailable as err:
                self._counts.failures += 1
                self._refuse_for_now(taken[place:], err)
                return False
            except Exception as err:
                _log.exception("a command failed by itself; if it was a settlement, its lease ends by itself")
                _answer_all([queued], err)
                continue
            self._counts.commands += 1
            if queued.answer is not None and not queued.answer.done():
                queued.answer.set_result(answer)
        return True

    def _apply(self, turns: Turns, answers: list[Answer], asked_s: float) -> None:
        for (kind, turn), turned in zip(turns, answers, strict=False):
            assert turned is None or isinstance(turned, Turned)
            now_ns = self.now_ns()
            self._allowances.apply(kind, turn, turned, asked_s, now_ns)
            if turned is not None and turned.spent_nano:
                self._fullness.note(turn.ask.budgets, turned.spent_nano, now_ns)

    async def _carry_out(self, commands: list[Command]) -> list[Answer]:
        lease_ns = int(self._lease_s * _NS)
        batch = Batch(commands, self.now_ns(), lease_ns, self._database.dialect)
        try:
            if self._swap is not None and (answers := await self._swap.try_carry_out(batch)) is not None:
                return answers
            return await self._database.run(batch.carry_out)
        except Deadlock:  # accounts that two gateways make at the same moment; the second time they are there
            return await self._database.run(batch.carry_out)

    def _refuse_for_now(self, taken: list[_Queued], err: StoreUnavailable) -> None:
        """Answer those who wait; keep settlements for later, in order."""
        for queued in reversed(taken):
            if queued.answer is not None:
                if not queued.answer.done():
                    queued.answer.set_exception(StoreUnavailable(err.message))
            else:
                self._queue.appendleft(queued)
        if self._queue:
            _log.warning("%d settlements wait for the database: %s", len(self._queue), err)

    async def _keep(self) -> None:
        """Renew, sweep, tidy up, for ever."""
        tidy_s = self._clock.now() + _UPKEEP_S
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await self.renew()
                await self.sweep()
                if self._clock.now() >= tidy_s:
                    tidy_s = self._clock.now() + _UPKEEP_S
                    async with self._database.transaction() as tx:
                        await forget_old(tx, self.now_ns())
            except StoreUnavailable as err:
                _log.warning("leases cannot be kept for now: %s", err)
            except Exception:
                _log.exception("upkeep of leases failed; it goes on")

    async def renew(self) -> None:
        """Keep the leases of allowances and of live grants, with how far each is."""
        async with self._batch:
            turns, asked_s = self._allowances.take_turns(renew=True), self._clock.now()
            if turns:
                try:
                    self._apply(turns, await self._carry_out([turn for _, turn in turns]), asked_s)
                except StoreUnavailable:
                    for kind, _ in turns:
                        self._allowances.restore(kind)
                    raise
        grants = [grant for grant in self._live.values() if grant.is_written and not grant.is_shadow]
        asked_s = self._clock.now()
        for start in range(0, len(grants), MAX_BATCH):
            part = grants[start : start + MAX_BATCH]
            answers = await self._carry_out([Renew(_note_progress(grant)) for grant in part])
            for grant, stands in zip(part, answers, strict=True):
                grant.lease_until_s = asked_s + self._lease_s * 0.9 if stands else asked_s

    async def sweep(self) -> None:
        """Release what gateways that are gone had reserved; set the clock by the database."""
        async with self._database.transaction(writes=False) as tx:
            self._ahead_ns = await database_ahead_ns(tx, self._database.dialect, self._wall_ns)
            has_expired = await find_expired(tx, self.now_ns())
        while has_expired:
            done = await self._database.run(partial(expire, dialect=self._database.dialect, now_ns=self.now_ns()))
            self._counts.expired += done
            has_expired = done > 0
            if done:
                _log.warning("released %d reservations of a gateway that is gone", done)


def aborted(grant: Grant, now_ns: int) -> Settlement:
    """Return the settlement of a request that never began."""
    ask = grant.ask
    return Settlement(
        id=ask.id,
        request_id=ask.request_id,
        settled_ns=now_ns,
        tenant=ask.tenant,
        key_id=ask.key_id,
        model=ask.model,
        task=ask.task,
        outcome="abort",
        counts=TokenCounts(),
        is_estimate=False,
        reserved_nano=grant.granted.granted_nano,
        cost_nano=0 if ask.price is not None else None,
        price_source=ask.price.source if ask.price is not None else None,
    )


def _note_progress(grant: Grant) -> Reservation:
    counts, known = grant.progress(), grant.reservation
    known.num_input, known.num_output = counts.num_input, counts.num_output
    known.progress_nano = grant.ask.price.cost_nano(counts) if grant.ask.price is not None else 0
    return known


def _answer_all(taken: list[_Queued], err: Exception) -> None:
    for queued in taken:
        if queued.answer is not None and not queued.answer.done():
            queued.answer.set_exception(err)
