"""A database with an audit log for tests, and what is done to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from headrace.core.audit import AuditEvent
from headrace.gateway.audit.chain import Chain, Entry, new_uid
from headrace.gateway.audit.keys import AuditKey, KeyRing, draw
from headrace.gateway.audit.verify import Anchor, Verdict, verify
from headrace.gateway.store import Database, migrate, open_database

DAY_NS = 86_400 * 10**9


def new_key() -> AuditKey:
    return AuditKey.parse(draw(), "a test")


class Log:
    """One database and the log in it."""

    def __init__(self, database: Database, key: AuditKey | None) -> None:
        self.database = database
        self.keys = KeyRing(key)
        self.chain = Chain(database.dialect, self.keys)

    async def add(self, *events: AuditEvent) -> None:
        entries = [Entry(new_uid(), event) for event in events]
        head = await self.database.run(lambda tx: self.chain.append(tx, entries))
        self.chain.confirm(head)

    async def fill(self, count: int, **fields: Any) -> None:
        await self.add(*(AuditEvent(at_ns=n * DAY_NS, **{"tenant": f"t{n % 3}", **fields}) for n in range(count)))

    async def do(self, *statements: str) -> None:
        """Change the database behind the log's back."""
        async with self.database.transaction() as tx:
            for sql in statements:
                await tx.fetch(sql)

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        async with self.database.transaction(writes=False) as tx:
            return [dict(row) for row in await tx.fetch(sql)]

    async def verdict(self, anchors: Sequence[Anchor] = (), keys: KeyRing | None = None) -> Verdict:
        return await verify(self.database, keys or self.keys, anchors)


def play(url: str, scene: Callable[[Log], Awaitable[None]], key: AuditKey | None = None) -> None:
    """Run a scene on a database with its schema."""

    async def whole() -> None:
        database = open_database(url)
        await database.open()
        try:
            await migrate(database)
            await scene(Log(database, key))
        finally:
            await database.close()

    asyncio.run(whole())
