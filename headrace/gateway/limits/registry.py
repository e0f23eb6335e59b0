"""Administration of limits: what the command line and the admin API do.

Owns the table `limits`. Setting a limit that exists changes its amount; what was counted so far stays.
"""

from __future__ import annotations

import secrets
import time

import msgspec

from headrace.core.errors import InvalidRequest, NotFound
from headrace.gateway.audit import Journal
from headrace.gateway.limits.rules import PERIODS_NS, LimitRule, What
from headrace.gateway.store import Database, Transaction
from headrace.gateway.store.pages import Found, Page, read_page
from headrace.gateway.store.subjects import check_model, check_subject
from headrace.gateway.store.watch import bump

MAX_AMOUNT = 10**12
_COLUMNS = "id, subject, model, what, per, amount"


class LimitRegistry:
    """Commands on limits."""

    def __init__(self, database: Database, journal: Journal | None = None) -> None:
        """Take the database, and the journal of whoever gives the commands."""
        self._database = database
        self._journal = journal or Journal()

    async def set(self, subject: str, what: What, amount: int, *, per: str = "", model: str = "") -> LimitRule:
        """Add a limit, or change the amount of the one for the same subject, model and period."""
        if not 1 <= amount <= MAX_AMOUNT:
            raise InvalidRequest(f"amount is {amount}; it must be between 1 and {MAX_AMOUNT:,}", param="amount")
        per = _check_per(what, per)
        check_model(model)
        async with self._database.transaction() as tx:
            await check_subject(tx, subject)
            before = await tx.fetch(*_same(subject, model, what, per))
            await tx.fetch(
                f"INSERT INTO limits ({_COLUMNS}, created_s) VALUES ($1, $2, $3, $4, $5, $6, $7) "
                "ON CONFLICT (subject, model, what, per) DO UPDATE SET amount = excluded.amount",
                *(f"lim-{secrets.token_hex(6)}", subject, model, what.value, per, amount, int(time.time())),
            )
            await bump(tx)
            rule = msgspec.convert((await tx.fetch(*_same(subject, model, what, per)))[0], LimitRule)
            await self._journal.note(tx, "limit.set", rule.id, before=before[0] if before else None, after=rule)
        return rule

    async def rules(self) -> list[LimitRule]:
        """List all limits, by subject."""
        async with self._database.transaction(writes=False) as tx:
            return await read_limits(tx)

    async def page(self, page: Page) -> Found[LimitRule]:
        """List a page of limits by id."""
        async with self._database.transaction(writes=False) as tx:
            rows, has_more = await read_page(tx, "limits", page)
        return Found([msgspec.convert(row, LimitRule) for row in rows], has_more)

    async def rule(self, limit_id: str) -> LimitRule:
        """Return one limit. Raises NotFound."""
        async with self._database.transaction(writes=False) as tx:
            return await _limit(tx, limit_id)

    async def remove(self, limit_id: str) -> LimitRule:
        """Remove a limit and what it has counted. Raises NotFound."""
        async with self._database.transaction() as tx:
            rule = await _limit(tx, limit_id)
            await tx.fetch("DELETE FROM limits WHERE id = $1", limit_id)
            await tx.fetch("DELETE FROM paces WHERE id LIKE $1", f"{limit_id}/%")
            await self._journal.note(tx, "limit.remove", limit_id, before=rule)
            await bump(tx)
        return rule


async def read_limits(tx: Transaction) -> list[LimitRule]:
    """Read all limits."""
    rows = await tx.fetch(f"SELECT {_COLUMNS} FROM limits ORDER BY subject, model, what, per")
    return [msgspec.convert(row, LimitRule) for row in rows]


def _same(subject: str, model: str, what: What, per: str) -> tuple[str, str, str, str, str]:
    """Return the query for the limit of the same kind."""
    sql = f"SELECT {_COLUMNS} FROM limits WHERE subject = $1 AND model = $2 AND what = $3 AND per = $4"
    return sql, subject, model, what.value, per


async def _limit(tx: Transaction, limit_id: str) -> LimitRule:
    rows = await tx.fetch(f"SELECT {_COLUMNS} FROM limits WHERE id = $1", limit_id)
    if not rows:
        raise NotFound(f"no limit '{limit_id[:80]}'; `headrace limits list` shows all", param="id")
    return msgspec.convert(rows[0], LimitRule)


def _check_per(what: What, per: str) -> str:
    """Return the period that belongs to what is counted. Raises InvalidRequest."""
    allowed: tuple[str, ...]
    match what:
        case What.PARALLEL:
            allowed = ("",)
        case What.STEPS:
            allowed = ("task", "")
            per = per or "task"
        case What.REQUESTS | What.TOKENS:
            allowed = tuple(PERIODS_NS)
    if per not in allowed:
        choices = " or ".join(f"'{name}'" for name in allowed if name) or "no period"
        raise InvalidRequest(f"a limit of {what} per '{per[:40]}' does not exist; give {choices}", param="per")
    return per
