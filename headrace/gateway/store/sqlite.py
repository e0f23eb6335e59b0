"""SQLite: one file, one connection, one thread; the event loop never waits for the disk.

Owns the connection. WAL with synchronous=NORMAL: a commit is one write() into the log and survives the death of this
process; `store.log_sync` adds the death of the machine. Checkpoints wait for a moment without
other work, but not for ever.
Invariant: transactions of this process never overlap (one lock); one of another process is waited for BUSY_S at most.
Source: sqlite.org/wal.html; sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, TypeVar

from headrace.core.errors import ConfigError, StoreUnavailable
from headrace.gateway.store.database import Row, RuleBroken, Transaction, Value
from headrace.gateway.store.log_sync import LogSync
from headrace.gateway.store.worker import Worker

T = TypeVar("T")

BUSY_S = 2.0
_COMMITS_PER_CHECKPOINT = 250
_PLACE = re.compile(r"\$(\d+)")
_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "wal_autocheckpoint=0")
_log = logging.getLogger(__name__)


class SqliteDatabase:
    """One SQLite file. Implements `store.Database`."""

    dialect: Literal["sqlite", "postgres"] = "sqlite"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._worker: Worker | None = None
        self._connection: sqlite3.Connection | None = None
        self._sync: LogSync | None = None
        self._num_commits = 0

    @property
    def path(self) -> Path:
        """Return where the file is."""
        return self._path

    async def open(self) -> None:
        """Open or make the file, readable by its owner only."""
        if self._worker is not None:
            return
        self._worker = Worker("headrace-store", self._fold_log)
        try:
            await self._worker.run(self._connect)
        except (OSError, sqlite3.Error) as err:
            await self.close()
            raise ConfigError(f"the database {self._path} cannot be opened: {err}; check path and permissions") from err
        self._sync = LogSync(Path(f"{self._path}-wal"))

    async def close(self) -> None:
        """Carry out what is queued, fold the log into the file, stop the threads."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        sync, self._sync = self._sync, None
        if sync is not None:
            await asyncio.to_thread(sync.stop)
        await worker.run(self._disconnect)
        await worker.stop()

    @asynccontextmanager
    async def transaction(self, *, writes: bool = True) -> AsyncIterator[Transaction]:
        """Begin, with the write lock at once if it `writes`, so that two processes cannot deadlock."""
        begin = "BEGIN IMMEDIATE" if writes else "BEGIN"
        async with self._lock:
            try:
                await self._run(partial(self._execute, begin, ()))
                yield _SqliteTransaction(self)
                await self._run(self._commit if writes else self._roll_back)
            except BaseException:
                await asyncio.shield(self._run(self._roll_back))
                raise

    async def run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Carry out a transaction in one visit to the thread."""
        async with self._lock:
            return await self._run(partial(self._carry_out, work))

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        """Carry out one statement in one visit to the thread."""

        async def work(tx: Transaction) -> list[Row]:
            return await tx.fetch(sql, *args)

        return await self.run(work)

    async def visit(self, sql: str, args: Sequence[Value]) -> list[Row]:
        """Carry out one statement of the open transaction."""
        return await self._run(partial(self._execute, _places(sql), args))

    async def _run(self, work: Callable[[], T]) -> T:
        if self._worker is None:
            raise StoreUnavailable("the gateway's database is closed; the server is stopping")
        try:
            return await self._worker.run(work)
        except (sqlite3.IntegrityError, OverflowError) as err:  # neither gets better by waiting
            raise RuleBroken(str(err)) from err
        except sqlite3.Error as err:
            raise StoreUnavailable(
                f"the database {self._path.name} does not work: {err}; free disk space, or end what holds its lock"
            ) from err

    # What follows runs in the thread.

    def _connect(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}").fetchall()
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        assert self._connection is not None
        return self._connection

    def _execute(self, sql: str, args: Sequence[Value]) -> list[Row]:
        return [dict(row) for row in self._opened().execute(sql, args)]

    def _carry_out(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        try:
            self._opened().execute("BEGIN IMMEDIATE")
            result = _drive(work(_InlineTransaction(self._opened())))
            self._commit()
        except BaseException:
            self._roll_back()
            raise
        return result

    def _commit(self) -> None:
        self._opened().execute("COMMIT")
        self._num_commits += 1
        if self._sync is not None:
            self._sync.mark()

    def _roll_back(self) -> None:
        if self._opened().in_transaction:
            self._opened().execute("ROLLBACK")

    def _fold_log(self, is_idle: bool) -> None:
        due = _COMMITS_PER_CHECKPOINT if is_idle else 4 * _COMMITS_PER_CHECKPOINT
        if self._num_commits < due or self._connection is None:
            return
        self._num_commits = 0
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as err:
            _log.warning("the log of %s is not folded into the file yet: %s", self._path.name, err)


class _SqliteTransaction:
    """A transaction in steps: one visit to the thread each."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        return await self._database.visit(sql, args)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Value]]) -> None:
        for args in rows:
            await self._database.visit(sql, args)


class _InlineTransaction:
    """A transaction inside the thread: its methods never wait."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        return [dict(row) for row in self._connection.execute(_places(sql), args)]

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Value]]) -> None:
        self._connection.executemany(_places(sql), rows)


def _drive(work: Awaitable[T]) -> T:
    """Carry out a coroutine that never waits."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("work on SQLite waited for something other than its transaction")


@lru_cache(maxsize=256)
def _places(sql: str) -> str:
    """Turn $1, $2, … into SQLite's places. They must occur once each, in order."""
    numbers = [int(number) for number in _PLACE.findall(sql)]
    assert numbers == list(range(1, len(numbers) + 1)), f"places out of order in: {sql}"
    return _PLACE.sub("?", sql)
