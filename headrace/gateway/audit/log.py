"""The audit log of one gateway process: its keys, its chain, its writer and its upkeep, put together.

Owns the order of their closing. Built by `gateway.gateway` unless `audit.record` is "none".
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.core.audit_settings import AuditSettings
from headrace.core.protocols import Clock
from headrace.gateway.audit.chain import Chain, read_head
from headrace.gateway.audit.content import ContentSafe
from headrace.gateway.audit.keys import KeyRing
from headrace.gateway.audit.upkeep import Upkeep
from headrace.gateway.audit.writer import AuditWriter
from headrace.gateway.store import Database


class AuditLog:
    """Raises ConfigError for keys that cannot be read, and for content without a key."""

    def __init__(
        self, database: Database, settings: AuditSettings, clock: Clock, read_secret: Callable[[str], str]
    ) -> None:
        keys = KeyRing.read(settings.key, settings.old_keys, read_secret)
        self._database = database
        self.chain = Chain(database.dialect, keys)
        self.writer = AuditWriter(database, self.chain, ContentSafe(settings.content, keys), settings, clock)
        self.upkeep = Upkeep(database, self.chain, settings.retention_days)

    async def check(self) -> None:
        """Raise ConfigError unless this process has the key that the log was last written with."""
        async with self._database.transaction(writes=False) as tx:
            self.chain.check_key(await read_head(tx))

    async def close(self) -> None:
        """Write what waits."""
        await self.upkeep.close()
        await self.writer.close()
