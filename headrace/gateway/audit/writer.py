"""The writer: events of this process into the chain, in batches, off the path of requests.

Owns what is not written yet. Events until a beat (`store.beats`) are one transaction; SQLite syncs within 50 ms more,
Postgres when it commits, so what has happened is on the disk within a tenth of a second. Nobody waits for it.
Without the database events wait in memory, `max_buffered` and MAX_BYTES at most. Beyond that either calls are refused
(503) until there is room, or events are given up and counted; the log itself says how many, once it goes on.
Callers without a key cannot fill the log: beyond DOOR_PER_S their refusals are only counted.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from headrace.core.audit import AuditContent, AuditEvent, Decision, Settled
from headrace.core.audit_settings import AuditSettings
from headrace.core.errors import HeadraceError, StoreUnavailable
from headrace.core.protocols import Clock
from headrace.core.stats import AuditStats
from headrace.gateway.audit.chain import Chain, Entry, Head
from headrace.gateway.audit.content import ContentSafe
from headrace.gateway.budgets.settlement import Settlement
from headrace.gateway.store import Database, Deadlock, RuleBroken, Transaction
from headrace.gateway.store.beats import BEAT_S, until_beat
from headrace.obs import tag_logs

GATHER_S = BEAT_S
RETRY_S = 0.5
CLOSE_S = 5.0
MAX_BATCH = 512
MAX_BYTES = 64 << 20
MAX_SETTLED = 10_000
DOOR_PER_S, DOOR_BURST = 20.0, 200.0
_EVENT_BYTES = 1_000  # in memory, about
_POLLED = ("/metrics", "/health", "/health/live", "/health/ready", "/health/progress", "/health/upstreams")
_log = logging.getLogger(__name__)


class Lost(msgspec.Struct, frozen=True):
    """What a row about lost rows says."""

    rows: int
    why: str


@dataclass(slots=True)
class _Waiting:
    uid: str
    event: AuditEvent
    content: AuditContent | None

    @property
    def num_bytes(self) -> int:
        content = self.content
        return _EVENT_BYTES + (0 if content is None else 4 * (len(content.request) + len(content.answer)))


class AuditWriter:
    """Writes the events of one process. Implements `core.audit.Auditor`."""

    def __init__(
        self,
        database: Database,
        chain: Chain,
        safe: ContentSafe,
        settings: AuditSettings,
        clock: Clock,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.content_limit = 0 if settings.content == "none" else settings.max_content_bytes
        self._database = database
        self._chain = chain
        self._safe = safe
        self._settings = settings
        self._clock = clock
        self._wall_ns = wall_ns
        self._name = f"gw-{secrets.token_hex(5)}"
        self._num_recorded = 0
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._unsure: list[Entry] = []  # a batch whose transaction failed; it may have been committed all the same
        self._settled: OrderedDict[str, Settled] = OrderedDict()
        self._lost: dict[str, int] = {}
        self._stats = {"written": 0, "lost": 0, "refused": 0, "failures": 0}
        self._door = DOOR_BURST
        self._door_s = clock.now()
        self._worker: asyncio.Task[None] | None = None
        self._is_closing = False

    def stats(self) -> AuditStats:
        """Return what has been done so far."""
        return AuditStats(waiting=len(self._waiting) + len(self._unsure), **self._stats)

    def wants(self, method: str, path: str, decision: Decision) -> bool:
        """Say whether a call leaves an event. Monitors that poll do not, unless they are turned away."""
        match self._settings.record:
            case "all":
                return decision != "allowed" or path not in _POLLED
            case "changes":
                return path.startswith("/admin/") and (method != "GET" or decision != "allowed")
            case "none":
                return False

    def check(self) -> None:
        """Raise StoreUnavailable while calls could not be recorded and must be."""
        if self._settings.on_failure == "refuse" and self._is_full:
            self._stats["refused"] += 1
            raise StoreUnavailable(
                f"{len(self._waiting):,} rows of the audit log wait for the database, and calls must be recorded "
                "(audit.on_failure); try again later"
            )

    def hear(self, settlement: Settlement) -> None:
        """Keep what a request came to, for the row of its call; of those that nobody asks for, the newest."""
        counts = settlement.counts
        self._settled[settlement.request_id] = Settled(
            counts.num_input, counts.cache_read, counts.num_output, settlement.is_estimate, settlement.cost_nano
        )
        if len(self._settled) > MAX_SETTLED:
            self._settled.popitem(last=False)

    def settled(self, request_id: str) -> Settled | None:
        """Return what a request came to, once."""
        return self._settled.pop(request_id, None)

    def record(self, event: AuditEvent, content: AuditContent | None = None) -> None:
        """Take an event; it is written soon."""
        if event.reason == "auth" and not self._try_door():
            self._lose("flood")
            return
        if self._is_full and (self._settings.on_failure == "serve" or self._is_overfull):
            self._lose("database")
            return
        self._num_recorded += 1
        waiting = _Waiting(f"{self._name}/{self._num_recorded}", event, content)
        self._waiting.append(waiting)
        self._waiting_bytes += waiting.num_bytes
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._work())

    async def flush(self) -> None:
        """Wait until what has been recorded is written, or the database has refused it."""
        if self._worker is not None:
            await asyncio.gather(self._worker, return_exceptions=True)

    async def close(self) -> None:
        """Write what waits; what cannot be written is told in the log."""
        self._is_closing = True
        if self._worker is not None and not self._worker.done():
            await asyncio.wait((self._worker,), timeout=CLOSE_S)
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        if num_left := len(self._waiting) + len(self._unsure):
            _log.error("%d rows of the audit log could not be written", num_left)

    @property
    def _is_full(self) -> bool:
        return len(self._waiting) >= self._settings.max_buffered or self._waiting_bytes >= MAX_BYTES

    @property
    def _is_overfull(self) -> bool:
        """Say whether even calls that were under way when it became full have filled their room."""
        return len(self._waiting) >= 2 * self._settings.max_buffered or self._waiting_bytes >= 2 * MAX_BYTES

    def _try_door(self) -> bool:
        now_s = self._clock.now()
        self._door = min(DOOR_BURST, self._door + (now_s - self._door_s) * DOOR_PER_S)
        self._door_s = now_s
        if self._door < 1:
            return False
        self._door -= 1
        return True

    def _lose(self, why: str) -> None:
        self._lost[why] = self._lost.get(why, 0) + 1
        self._stats["lost"] += 1

    async def _work(self) -> None:
        tag_logs(None)  # begun by one call, writes for all
        while self._waiting or self._unsure:
            if not self._is_closing:
                await asyncio.sleep(until_beat(asyncio.get_running_loop().time(), GATHER_S))
            try:
                await self._write()
            except Deadlock:
                continue
            except (HeadraceError, RuleBroken) as err:
                self._stats["failures"] += 1
                _log.warning("%d rows of the audit log wait: %s", len(self._waiting) + len(self._unsure), err)
                await asyncio.sleep(RETRY_S)
            except Exception:  # ours: later events must not be lost because of it
                self._stats["failures"] += 1
                _log.exception("a batch of the audit log failed")
                await asyncio.sleep(RETRY_S)

    async def _write(self) -> None:
        """Write one batch. A batch that failed is looked for before it is written again."""
        is_again = bool(self._unsure)
        if not is_again:
            self._unsure = await self._take()
            self._unsure += self._tell_lost(self._unsure[0].uid)
        entries = self._unsure
        head = await self._database.run(partial(self._append, entries, is_again))
        if head is not None:
            self._chain.confirm(head)
        self._unsure = []
        self._stats["written"] += len(entries)

    def _tell_lost(self, uid: str) -> list[Entry]:
        """Return the rows that say how many rows were given up."""
        lost, self._lost = self._lost, {}
        return [
            Entry(
                f"{uid}/{why}",
                AuditEvent(
                    at_ns=self._wall_ns(),
                    kind="lost",
                    actor="gateway",
                    detail=Lost(rows, why),
                ),
            )
            for why, rows in lost.items()
        ]

    async def _append(self, entries: list[Entry], is_again: bool, tx: Transaction) -> Head | None:
        if is_again and await tx.fetch("SELECT uid FROM audit_rows WHERE uid = $1", entries[0].uid):
            return None
        return await self._chain.append(tx, entries)

    async def _take(self) -> list[Entry]:
        taken = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
        self._waiting_bytes -= sum(each.num_bytes for each in taken)
        if any(each.content is not None for each in taken):
            return await asyncio.to_thread(lambda: [self._close(each) for each in taken])
        return [Entry(each.uid, each.event) for each in taken]

    def _close(self, each: _Waiting) -> Entry:
        return Entry(each.uid, each.event, None if each.content is None else self._safe.close(each.content))
