"""One connection to Postgres for statements that must be quick: one round trip each, no wait for the disk.

Owns the connection and the flush behind it. A commit is in force for every gateway at once, and survives the death of
any of them; the death of the database's machine it survives FLUSH_S and one fsync later. That is what
`store.log_sync` promises for SQLite.
Invariant: one statement at a time, in the order of calls; a connection that failed is not used again.
Source: PostgreSQL manual, "Asynchronous Commit": a commit that waits for the disk takes all earlier ones along.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from headrace.gateway.store.database import Row, Value

if TYPE_CHECKING:
    import asyncpg

FLUSH_S = 0.05
# Statements here are large and find rows by their keys: planned once, by index even where a table is still small.
_SETUP = """
SET synchronous_commit = off; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off
"""
_log = logging.getLogger(__name__)


class Lane:
    """Carries out single statements on a connection of its own."""

    def __init__(
        self, connect: Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]], flush: Callable[[], Awaitable[None]]
    ) -> None:
        """Make a lane. `flush` commits something and waits until it is on the disk."""
        self._connect = connect
        self._flush = flush
        self._lock = asyncio.Lock()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._is_behind = False

    async def fetch(self, sql: str, args: tuple[Value, ...]) -> list[Row]:
        """Carry out one statement; return its rows. Raises what asyncpg raises."""
        async with self._lock:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
                await self._connection.execute(_SETUP)
            try:
                found = await self._connection.fetch(sql, *args)
            except BaseException:  # a cancelled or failed statement may still be under way there
                self._connection.terminate()
                self._connection = None
                raise
        self._is_behind = True
        if self._flushing is None:
            self._flushing = asyncio.ensure_future(self._flush_soon())
        return [dict(record) for record in found]

    async def close(self) -> None:
        """Put everything on the disk and disconnect."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
            self._flushing = None
        if self._is_behind:
            self._is_behind = False
            await self._try_flush()
        async with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.terminate()

    async def _flush_soon(self) -> None:
        while self._is_behind:
            await asyncio.sleep(FLUSH_S)
            self._is_behind = False
            await self._try_flush()
        self._flushing = None

    async def _try_flush(self) -> None:
        try:
            await self._flush()
        except Exception as err:
            _log.warning("the database was not asked to write its log to the disk: %s", err)
