"""The schema, in numbered steps forward.

Owns the table `migrations`. A step is one SQL file beside this one; it is carried out once, in order, in one
transaction with its record, under a lock, so that gateways that start together do not race.
Invariant: a step that has been released is never edited; its digest is kept, and a difference is refused. A database
that is newer than the program is refused as well.
"""

from __future__ import annotations

import hashlib
import time
from importlib import resources
from typing import NamedTuple

from headrace.core.errors import ConfigError
from headrace.gateway.store.database import Database, Transaction

_LOCK = 0x68656164  # any number that no other program uses for its advisory lock
_TABLE = "CREATE TABLE IF NOT EXISTS migrations (step BIGINT PRIMARY KEY, digest TEXT NOT NULL, at_s BIGINT NOT NULL)"


class _Step(NamedTuple):
    number: int
    digest: str
    statements: tuple[str, ...]


async def migrate(database: Database) -> int:
    """Bring the schema up to date; return the number of steps that were carried out. Raises ConfigError."""
    steps = _steps()
    async with database.transaction() as tx:
        if database.dialect == "postgres":
            await tx.fetch("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await tx.fetch(_TABLE)
        done = {row["step"]: row["digest"] for row in await tx.fetch("SELECT step, digest FROM migrations")}
        if unknown := set(done) - {step.number for step in steps}:
            raise ConfigError(
                f"the database is at step {max(str(step) for step in unknown)}, this program knows {len(steps)} steps; "
                "use the newer program, or a database of its own"
            )
        return sum([await _carry_out(tx, step, done.get(step.number)) for step in steps])


async def _carry_out(tx: Transaction, step: _Step, digest: object) -> bool:
    if digest is not None:
        if digest != step.digest:
            raise ConfigError(f"step {step.number} of the database differs from this program's; they are not a pair")
        return False
    for statement in step.statements:
        await tx.fetch(statement)
    await tx.fetch("INSERT INTO migrations VALUES ($1, $2, $3)", step.number, step.digest, int(time.time()))
    return True


def _steps() -> list[_Step]:
    folder = resources.files("headrace.gateway.store") / "steps"
    steps = []
    for file in sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda e: e.name):
        text = file.read_text(encoding="utf-8")
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
        statements = tuple(part.strip() for part in code.split(";") if part.strip())
        steps.append(_Step(int(file.name.split("_")[0]), hashlib.sha256(code.encode()).hexdigest(), statements))
    return steps
