"""Postgres: a small pool of connections, for several gateways over one database.

Owns the pool, and the lane for quick statements. asyncpg is imported in `store` alone, when a Postgres URL is
configured: extra `headrace[postgres]`.
Invariant: a lost connection, a refused one and a timeout are `StoreUnavailable`; the next call tries anew. No error
message carries the URL's password.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

from headrace.core.errors import ConfigError, StoreUnavailable
from headrace.gateway.store.database import Deadlock, Row, RuleBroken, Transaction, Value
from headrace.gateway.store.postgres_lane import Lane

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg

T = TypeVar("T")

COMMAND_S = 2.0
CONNECT_S = 5.0
MAX_CONNECTIONS = 4
_FLUSH = "SELECT pg_logical_emit_message(true, 'headrace', '')"  # writes to the log, so that its commit is waited for


class PostgresDatabase:
    """One Postgres database. Implements `store.Database`."""

    dialect: Literal["sqlite", "postgres"] = "postgres"

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._lane = Lane(self._connect, self._flush)

    async def open(self) -> None:
        """Connect once, to see that it works."""
        try:
            import asyncpg
        except ImportError as err:
            raise ConfigError("Postgres needs asyncpg; install the extra: pip install 'headrace[postgres]'") from err
        try:
            self._pool = await asyncpg.create_pool(
                self._url, min_size=1, max_size=MAX_CONNECTIONS, command_timeout=COMMAND_S, timeout=CONNECT_S
            )
        except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as err:
            raise ConfigError(
                f"the Postgres database cannot be reached: {type(err).__name__}: {err}; check HEADRACE_DATABASE"
            ) from err

    async def close(self) -> None:
        """Give the connections back and close them."""
        if self._pool is None:
            return
        await self._lane.close()
        pool, self._pool = self._pool, None
        try:
            await asyncio.wait_for(pool.close(), CONNECT_S)
        except TimeoutError:
            pool.terminate()

    @asynccontextmanager
    async def transaction(self, *, writes: bool = True) -> AsyncIterator[Transaction]:
        """Begin at READ COMMITTED: rows that are decided upon are locked first."""
        with _failures():
            async with (
                self._opened().acquire(timeout=COMMAND_S) as connection,
                connection.transaction(readonly=not writes),
            ):
                yield _PostgresTransaction(connection)

    async def run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Carry out a transaction."""
        async with self.transaction() as tx:
            return await work(tx)

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        """Carry out one statement in one round trip."""
        self._opened()
        with _failures():
            return await self._lane.fetch(sql, args)

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        import asyncpg

        return await asyncpg.connect(self._url, command_timeout=COMMAND_S, timeout=CONNECT_S)

    async def _flush(self) -> None:
        await self._opened().execute(_FLUSH)

    def _opened(self) -> asyncpg.Pool[asyncpg.Record]:
        if self._pool is None:
            raise StoreUnavailable("the gateway's database is closed; the server is stopping")
        return self._pool


class _PostgresTransaction:
    def __init__(self, connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record]) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        return [dict(record) for record in await self._connection.fetch(sql, *args)]

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Value]]) -> None:
        await self._connection.executemany(sql, rows)


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what asyncpg raises into the store's own errors."""
    import asyncpg

    try:
        yield
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as err:  # neither gets better by waiting
        raise RuleBroken(str(err)) from err
    except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as err:
        raise Deadlock(str(err)) from err
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as err:
        raise StoreUnavailable(
            f"the Postgres database does not answer ({': '.join(filter(None, (type(err).__name__, str(err))))}); "
            "the gateway tries again by itself"
        ) from err
