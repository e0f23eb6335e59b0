"""Administration of budgets: what the command line and the admin API do.

Owns the table `budgets`. Setting a budget that exists changes it; what was spent in its period stays, until `reset`
begins new accounts.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import msgspec

from headrace.core.errors import InvalidRequest, NotFound
from headrace.econ.money import show_usd
from headrace.gateway.audit import Journal
from headrace.gateway.budgets.account import Spend
from headrace.gateway.budgets.periods import check_period, check_timezone
from headrace.gateway.budgets.rules import BudgetRule
from headrace.gateway.store import Database, Row, Transaction
from headrace.gateway.store.pages import Found, Page, read_page
from headrace.gateway.store.subjects import check_model, check_subject
from headrace.gateway.store.watch import bump

MAX_NANO = 10**18  # a billion dollars: sums stay inside 64 bits
_COLUMNS = "id, subject, model, period, timezone, limit_nano, soft_nano, is_hard, epoch"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """Where one account of a budget stands."""

    account: str
    spent_nano: int
    reserved_nano: int
    updated_s: int


class BudgetRegistry:
    """Commands on budgets."""

    def __init__(self, database: Database, journal: Journal | None = None) -> None:
        """Take the database, and the journal of whoever gives the commands."""
        self._database = database
        self._journal = journal or Journal()

    async def set(
        self,
        subject: str,
        limit_nano: int,
        *,
        period: str = "month",
        model: str = "",
        is_hard: bool = True,
        soft_nano: int | None = None,
        timezone: str = "UTC",
    ) -> BudgetRule:
        """Add a budget, or change the one for the same subject, model and period."""
        period, timezone = check_period(period), check_timezone(timezone)
        if not 0 <= limit_nano <= MAX_NANO:
            raise InvalidRequest(
                f"the limit is ${show_usd(limit_nano)}; it must be 0 to ${show_usd(MAX_NANO)}", param="limit_nano"
            )
        if soft_nano is not None and not 0 <= soft_nano <= limit_nano:
            limits = f"between $0 and the limit, ${show_usd(limit_nano)}"
            raise InvalidRequest(f"the soft mark is ${show_usd(soft_nano)}; it must be {limits}", param="soft_nano")
        check_model(model)
        async with self._database.transaction() as tx:
            await check_subject(tx, subject)
            before = await _same(tx, subject, model, period)
            await tx.fetch(
                f"INSERT INTO budgets ({_COLUMNS}, created_s) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9) "
                "ON CONFLICT (subject, model, period) DO UPDATE SET timezone = excluded.timezone, "
                "limit_nano = excluded.limit_nano, soft_nano = excluded.soft_nano, is_hard = excluded.is_hard",
                *(f"bud-{secrets.token_hex(6)}", subject, model, period, timezone, limit_nano, soft_nano),
                *(int(is_hard), int(time.time())),
            )
            await bump(tx)
            rule = await _same(tx, subject, model, period)
            assert rule is not None
            await self._journal.note(tx, "budget.set", rule.id, before=before, after=rule)
        return rule

    async def rules(self) -> list[BudgetRule]:
        """List all budgets, by subject."""
        async with self._database.transaction(writes=False) as tx:
            return await read_budgets(tx)

    async def page(self, page: Page) -> Found[BudgetRule]:
        """List a page of budgets by id."""
        async with self._database.transaction(writes=False) as tx:
            rows, has_more = await read_page(tx, "budgets", page)
        return Found([_as_rule(row) for row in rows], has_more)

    async def rule(self, budget_id: str) -> BudgetRule:
        """Return one budget. Raises NotFound."""
        async with self._database.transaction(writes=False) as tx:
            return await _budget(tx, budget_id)

    async def accounts(self, budget_id: str) -> list[AccountState]:
        """List where a budget's accounts stand, the one that moved last first; at most 1,000."""
        async with self._database.transaction(writes=False) as tx:
            rule = await _budget(tx, budget_id)
            rows = await tx.fetch(
                "SELECT id, spent_nano, reserved_nano, window_s, slices, updated_s FROM spends "
                "WHERE id LIKE $1 ORDER BY updated_s DESC, id LIMIT 1000",
                f"{budget_id}/{rule.epoch}/%",
            )
        return [_as_state(row) for row in rows]

    async def reset(self, budget_id: str) -> BudgetRule:
        """Begin new accounts: nothing is spent. Requests under way settle on the old ones."""
        async with self._database.transaction() as tx:
            before = await _budget(tx, budget_id)
            await tx.fetch("UPDATE budgets SET epoch = epoch + 1 WHERE id = $1", budget_id)
            await bump(tx)
            rule = await _budget(tx, budget_id)
            await self._journal.note(tx, "budget.reset", budget_id, before=before, after=rule)
            return rule

    async def remove(self, budget_id: str) -> BudgetRule:
        """Remove a budget. What was settled stays in the settlements. Raises NotFound."""
        async with self._database.transaction() as tx:
            rule = await _budget(tx, budget_id)
            await tx.fetch("DELETE FROM budgets WHERE id = $1", budget_id)
            await self._journal.note(tx, "budget.remove", budget_id, before=rule)
            await bump(tx)
        return rule


async def read_budgets(tx: Transaction) -> list[BudgetRule]:
    """Read all budgets."""
    return [_as_rule(row) for row in await tx.fetch(f"SELECT {_COLUMNS} FROM budgets ORDER BY subject, model, period")]


async def _same(tx: Transaction, subject: str, model: str, period: str) -> BudgetRule | None:
    """Return the budget of the same kind, if there is one."""
    sql = f"SELECT {_COLUMNS} FROM budgets WHERE subject = $1 AND model = $2 AND period = $3"
    rows = await tx.fetch(sql, subject, model, period)
    return _as_rule(rows[0]) if rows else None


async def _budget(tx: Transaction, budget_id: str) -> BudgetRule:
    rows = await tx.fetch(f"SELECT {_COLUMNS} FROM budgets WHERE id = $1", budget_id)
    if not rows:
        raise NotFound(f"no budget '{budget_id[:80]}'; `headrace budgets list` shows all", param="id")
    return _as_rule(rows[0])


def _as_rule(row: Row) -> BudgetRule:
    return msgspec.convert({**row, "is_hard": row["is_hard"] == 1}, BudgetRule)


def _as_state(row: Row) -> AccountState:
    """Show an account as it stands now: a rolling one has moved on since it was written."""
    spend = Spend.named(str(row["id"]))
    spend.spent_nano = int(str(row["spent_nano"]))
    spend.slices = {} if row["slices"] is None else msgspec.json.decode(str(row["slices"]), type=dict[int, int])
    spend.roll(int(time.time()))
    return AccountState(
        account=spend.id.split("/", 2)[2],
        spent_nano=spend.spent_nano,
        reserved_nano=int(str(row["reserved_nano"])),
        updated_s=int(str(row["updated_s"])),
    )
