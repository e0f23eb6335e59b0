"""What the process remembers of the database, kept fresh: tenants, keys and rules change rarely and are read always.

Owns the generation that was seen last. Every administrative write raises the database's generation; one look at it,
at most once in FRESH_S and only while requests come, tells whether to load anew. A request waits for the look only
when the last one is older than STALE_S.
Invariant: readers are loaded in one transaction, so keys and rules are of the same moment. Without a database what is
known stays valid for LOST_S; then callers are told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from headrace.core.errors import StoreUnavailable
from headrace.core.protocols import Clock
from headrace.gateway.store.database import Database, Transaction
from headrace.obs import tag_logs

FRESH_S = 1.0
STALE_S = 5.0
LOST_S = 300.0
_log = logging.getLogger(__name__)


class Reader(Protocol):
    """Remembers a part of the database."""

    async def load(self, tx: Transaction) -> None:
        """Read that part and replace what was known."""
        ...


class Watch:
    """Tells readers when to load."""

    def __init__(self, database: Database, clock: Clock, readers: Sequence[Reader]) -> None:
        self._database = database
        self._clock = clock
        self._readers = readers
        self._generation: object = None
        self._looked_s = -STALE_S
        self._look: asyncio.Task[None] | None = None

    @property
    def is_fresh(self) -> bool:
        """Say whether there is nothing to look at or to wait for."""
        return self._generation is not None and self._clock.now() - self._looked_s < FRESH_S

    async def ensure_fresh(self) -> None:
        """Return when what is known is at most STALE_S old. Raises StoreUnavailable after LOST_S without a database."""
        if self.is_fresh:
            return
        age_s = self._clock.now() - self._looked_s
        if self._look is None:
            self._look = asyncio.ensure_future(self._try())
        if age_s >= STALE_S or self._generation is None:
            await asyncio.shield(self._look)

    async def look(self) -> None:
        """Load if the generation has changed. Raises StoreUnavailable."""
        asked_s = self._clock.now()
        async with self._database.transaction(writes=False) as tx:
            (row,) = await tx.fetch("SELECT value FROM generation")
            if row["value"] != self._generation:
                for reader in self._readers:
                    await reader.load(tx)
        self._generation = row["value"]
        self._looked_s = asked_s

    async def close(self) -> None:
        """Wait for a look that is under way."""
        if self._look is not None:
            await asyncio.gather(self._look, return_exceptions=True)

    async def _try(self) -> None:
        tag_logs(None)  # begun by one request, looks for all
        try:
            await self.look()
        except StoreUnavailable as err:
            if self._generation is None or self._clock.now() - self._looked_s > LOST_S:
                raise
            _log.warning("keys and rules are as they were %.0f s ago: %s", self._clock.now() - self._looked_s, err)
        finally:
            self._look = None


async def bump(tx: Transaction) -> None:
    """Say, as part of an administrative write, that gateways must look again."""
    await tx.fetch("UPDATE generation SET value = value + 1")
