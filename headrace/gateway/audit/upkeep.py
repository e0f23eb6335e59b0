"""Upkeep of the log while a gateway runs: rows past their retention go, and the process's log notes the chain's end.

Owns one task, asleep but for a moment each hour. The noted end is an anchor: kept elsewhere with the process's logs,
it shows later whether the whole audit log was put back to an earlier state.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from headrace.core.errors import HeadraceError
from headrace.gateway.audit.chain import Chain, read_head
from headrace.gateway.audit.gaps import prune
from headrace.gateway.store import Database, Deadlock, RuleBroken, Transaction

EVERY_S = 3600.0
_PAUSE_S = 0.1  # between two batches, for requests' own transactions
_DAY_NS = 86_400 * 10**9
_log = logging.getLogger(__name__)


class Upkeep:
    """Looks after one database's log."""

    def __init__(
        self, database: Database, chain: Chain, retention_days: int, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._database = database
        self._chain = chain
        self._retention_days = retention_days
        self._wall_ns = wall_ns
        self._noted = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def prune(self) -> int:
        """Delete what is past its retention; return the number of rows."""
        if self._retention_days == 0:
            return 0
        before_ns = self._wall_ns() - self._retention_days * _DAY_NS
        num_deleted = 0

        async def one_batch(tx: Transaction) -> int:
            return await prune(tx, self._chain, before_ns)

        while deleted := await self._database.run(one_batch):
            num_deleted += deleted
            await asyncio.sleep(_PAUSE_S)
        return num_deleted

    async def _run(self) -> None:
        while True:
            try:
                if num_deleted := await self.prune():
                    _log.info("%d rows of the audit log were past their retention and are gone", num_deleted)
                await self._anchor()
            except (HeadraceError, Deadlock, RuleBroken) as err:
                _log.warning("the audit log could not be looked after: %s", err)
            await asyncio.sleep(EVERY_S)

    async def _anchor(self) -> None:
        async with self._database.transaction(writes=False) as tx:
            head = await read_head(tx)
        if head.seq > self._noted:
            self._noted = head.seq
            _log.info("the audit log ends at row %d with digest %s", head.seq, head.digest)
