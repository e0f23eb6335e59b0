"""The gateway of one server process: its database and everything that remembers it, opened and closed together.

Owns the order of opening and closing. Built by `app.serving` when a database is configured.
"""

from __future__ import annotations

from headrace.core.caller import Gatekeeper
from headrace.core.protocols import Clock
from headrace.gateway.identity import Directory
from headrace.gateway.identity.gate import Gate
from headrace.gateway.store import migrate, open_database
from headrace.gateway.store.watch import Watch


class Gateway:
    """Keys of one server process."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._database = open_database(url)
        self._directory = Directory()
        self._watch = Watch(self._database, clock, [self._directory])
        self.gatekeeper: Gatekeeper = Gate(self._directory, self._watch)

    @property
    def has_keys(self) -> bool:
        """Say whether callers need keys."""
        return self._directory.has_keys

    async def open(self) -> None:
        """Connect, bring the schema up to date, read keys. Raises ConfigError or StoreUnavailable."""
        await self._database.open()
        await migrate(self._database)
        await self._watch.look()

    async def close(self) -> None:
        """Write what is left and disconnect."""
        await self._watch.close()
        await self._database.close()
