"""The recorder: writes what the engines did beside what requests were charged, in batches, off the path of requests.

Owns the accounts of this process's engines and the table `engine_spans`. A span is written each `every_s` seconds and
at the end; a process that is killed loses the pool's time since its last span, never a settled request.
Without the database spans wait in memory, the newest `_MOST_WAITING`, and are written when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from headrace.core.errors import HeadraceError
from headrace.core.request import RequestId
from headrace.core.stats import EngineTime, RequestStats
from headrace.econ import EngineBuild, EngineSpan, MachineRate
from headrace.gateway.ledger.engine_account import Charge, EngineAccount
from headrace.gateway.ledger.refusals import RefusalRow, Refusals
from headrace.gateway.store import Database, Transaction

_MOST_WAITING = 10_000
_SAVE = (
    f"INSERT INTO engine_spans ({', '.join(EngineSpan._fields)}) "
    f"VALUES ({', '.join(f'${place}' for place in range(1, len(EngineSpan._fields) + 1))}) ON CONFLICT (id) DO NOTHING"
)
_SAVE_REFUSALS = (
    f"INSERT INTO refusals ({', '.join(RefusalRow._fields)}) "
    f"VALUES ({', '.join(f'${place}' for place in range(1, len(RefusalRow._fields) + 1))}) ON CONFLICT (id) DO NOTHING"
)
_BUILD = ("engine", "model", *EngineBuild._fields)
_SAVE_BUILD = (
    f"INSERT INTO engines ({', '.join(_BUILD)}) "
    f"VALUES ({', '.join(f'${place}' for place in range(1, len(_BUILD) + 1))}) ON CONFLICT (engine) DO NOTHING"
)
_log = logging.getLogger(__name__)


class LedgerRecorder:
    """Bills the engines of one process."""

    def __init__(
        self,
        database: Database,
        rate: MachineRate | None,
        *,
        every_s: float,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._database = database
        self._rate = rate
        self._every_s = every_s
        self._wall_ns = wall_ns
        self._accounts: list[EngineAccount] = []
        self._waiting: deque[EngineSpan] = deque(maxlen=_MOST_WAITING)
        self._task: asyncio.Task[None] | None = None
        self.refusals = Refusals(wall_ns())

    def add_engine(
        self, model: str, time: Callable[[], EngineTime], build: EngineBuild | None = None
    ) -> Callable[[RequestStats], None]:
        """Bill one more engine; return what has to hear of its ended requests."""
        if self._rate is None and not self._accounts:
            _log.warning("engine time has no price: set gateway.usd_per_hour to know what requests cost this machine")
        account = EngineAccount(model, self._rate, time, self._wall_ns, build)
        self._accounts.append(account)
        return account.on_finished

    def claim(self, request_id: RequestId) -> Charge | None:
        """Bill an ended request; None if no engine of this process has computed for it."""
        for account in self._accounts:
            if (charge := account.claim(request_id)) is not None:
                return charge
        return None

    def start(self) -> None:
        """Write spans from now on."""
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Write the last spans. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.write()
        self._accounts.clear()
        if self._waiting:
            _log.error("%d spans of engine time could not be written to the ledger", len(self._waiting))

    async def write(self) -> None:
        """Book every engine's time since the last span, and write what waits."""
        self._waiting.extend(account.span() for account in self._accounts)
        rows = [tuple(span) for span in self._waiting]
        builds = [(a.engine, a.model, *a.build) for a in self._accounts if a.build is not None]
        refused = self.refusals.take(self._wall_ns())
        if not rows and not refused:
            return

        async def save(tx: Transaction) -> None:
            if rows:
                await tx.execute_many(_SAVE, rows)
            if refused:
                await tx.execute_many(_SAVE_REFUSALS, refused)
            if builds:
                await tx.execute_many(_SAVE_BUILD, builds)

        try:
            await self._database.run(save)
        except HeadraceError as err:
            self.refusals.put_back(refused)
            _log.warning("%d spans of engine time wait for the database: %s", len(rows), err.message)
            return
        for _ in rows:
            self._waiting.popleft()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self.write()
