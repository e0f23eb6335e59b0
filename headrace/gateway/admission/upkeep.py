"""Upkeep of the accounts: one clock for all gateways, leases that ran out, rows that nobody needs any more.

Owns no state. Settlements are never removed here: they belong to the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from headrace.gateway.store import Transaction

_DAY_S = 86_400
TASK_KEPT_S = 7 * _DAY_S
CLOSED_KEPT_S = 7 * _DAY_S
SPEND_KEPT_S = 400 * _DAY_S
_NS = 10**9


async def database_ahead_ns(tx: Transaction, dialect: Literal["sqlite", "postgres"], wall_ns: Callable[[], int]) -> int:
    """Return how far the database's clock is ahead of ours, to half a round trip; 0 for a file on this machine."""
    if dialect == "sqlite":
        return 0
    before_ns = wall_ns()
    sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us"
    (row,) = await tx.fetch(sql)
    now_us = row["now_us"]
    assert isinstance(now_us, int)
    return now_us * 1000 - (before_ns + wall_ns()) // 2


async def find_expired(tx: Transaction, now_ns: int) -> bool:
    """Say whether a lease has run out."""
    sql = "SELECT id FROM reservations WHERE is_open = 1 AND lease_until_ns < $1 LIMIT 1"
    return bool(await tx.fetch(sql, now_ns))


async def forget_old(tx: Transaction, now_ns: int) -> None:
    """Remove accounts that have been still for long: of tasks after a week, of old periods after 400 days."""
    now_s = now_ns // _NS
    await tx.fetch(
        "DELETE FROM spends WHERE id LIKE '%/task/%' AND reserved_nano = 0 AND updated_s < $1", now_s - TASK_KEPT_S
    )
    await tx.fetch("DELETE FROM spends WHERE reserved_nano = 0 AND updated_s < $1", now_s - SPEND_KEPT_S)
    await tx.fetch("DELETE FROM paces WHERE updated_s < $1", now_s - TASK_KEPT_S)
    await tx.fetch("DELETE FROM reservations WHERE is_open = 0 AND created_ns < $1", (now_s - CLOSED_KEPT_S) * _NS)
