"""Reading the ledger for the audit of a stack: requests and spans of a period, and how engines were built.

Owns the queries. Reads only, in pages; what is returned takes about a kilobyte of memory for each request.
Raises NotFound for a tenant or model that the ledger does not know, and for a period without records.
"""

from __future__ import annotations

from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TypeVar

import msgspec

from headrace.core.errors import NotFound
from headrace.econ import EngineBuild, EngineSpan
from headrace.econ.stack import Ledger, RequestRow
from headrace.gateway.store import Database, Row, Value

T = TypeVar("T", RequestRow, EngineSpan, EngineBuild)


async def read_ledger(
    database: Database,
    since_ns: int,
    until_ns: int,
    tenant: str | None = None,
    model: str | None = None,
    *,
    page_rows: int = 2_000,
) -> Ledger:
    """Read what was settled, and what engines did, from `since_ns` until before `until_ns`."""
    if tenant is not None:
        await _check(database, "tenant", tenant, "SELECT DISTINCT tenant AS name FROM settlements")
    if model is not None:
        of_both = "SELECT DISTINCT model AS name FROM settlements UNION SELECT DISTINCT model FROM engine_spans"
        await _check(database, "model", model, of_both)
    requests = await _requests(database, (since_ns, until_ns), tenant, model, page_rows)
    spans = await _spans(database, since_ns, until_ns, model)
    if not requests and not spans:
        of = "".join(
            f" of {what} '{name}'" for what, name in (("tenant", tenant), ("model", model)) if name is not None
        )
        raise NotFound(
            f"the ledger has no records{of} from {_day(since_ns)} until {_day(until_ns)}; serve requests with this "
            "database first, or give another period with --since and --until"
        )
    return Ledger(
        since_ns=since_ns,
        until_ns=until_ns,
        requests=requests,
        spans=spans,
        builds=await _builds(database),
        others_ns={} if tenant is None else await _others(database, since_ns, until_ns, tenant),
    )


async def _requests(
    database: Database, period: tuple[int, int], tenant: str | None, model: str | None, page_rows: int
) -> list[RequestRow]:
    since_ns, until_ns = period
    found: list[RequestRow] = []
    after: tuple[Value, Value] = (since_ns, "")
    only = [(name, value) for name, value in (("tenant", tenant), ("model", model)) if value is not None]
    where = "".join(f" AND {name} = ${place}" for place, (name, _) in enumerate(only, 5))
    while True:
        async with database.transaction(writes=False) as tx:
            rows = await tx.fetch(
                f"SELECT id, {', '.join(RequestRow._fields)} FROM settlements WHERE settled_ns < $1 "
                f"AND (settled_ns > $2 OR (settled_ns = $3 AND id > $4)){where} "
                f"ORDER BY settled_ns, id LIMIT {page_rows}",
                *(until_ns, after[0], after[0], after[1]),
                *(value for _, value in only),
            )
        found += [_value(row, RequestRow) for row in rows]
        if len(rows) < page_rows:
            return found
        after = (rows[-1]["settled_ns"], rows[-1]["id"])


async def _spans(database: Database, since_ns: int, until_ns: int, model: str | None) -> list[EngineSpan]:
    only: list[Value] = [] if model is None else [model]
    where = " AND model = $3" if only else ""
    async with database.transaction(writes=False) as tx:
        rows = await tx.fetch(
            f"SELECT {', '.join(EngineSpan._fields)} FROM engine_spans WHERE until_ns >= $1 AND until_ns < $2{where} "
            "ORDER BY until_ns, id",
            *(since_ns, until_ns, *only),
        )
    return [_value(row, EngineSpan) for row in rows]


async def _builds(database: Database) -> dict[str, EngineBuild]:
    async with database.transaction(writes=False) as tx:
        rows = await tx.fetch(f"SELECT engine, {', '.join(EngineBuild._fields)} FROM engines")
    return {str(row["engine"]): _value(row, EngineBuild) for row in rows}


async def _others(database: Database, since_ns: int, until_ns: int, tenant: str) -> dict[str, int]:
    """Sum the engine time of other tenants' requests, by engine."""
    async with database.transaction(writes=False) as tx:
        rows = await tx.fetch(
            "SELECT engine, CAST(SUM(engine_ns) AS BIGINT) AS used_ns FROM settlements "
            "WHERE settled_ns >= $1 AND settled_ns < $2 AND tenant <> $3 AND engine IS NOT NULL GROUP BY engine",
            *(since_ns, until_ns, tenant),
        )
    return {str(row["engine"]): used for row in rows if isinstance(used := row["used_ns"], int)}


async def _check(database: Database, what: str, name: str, sql: str) -> None:
    """Raise NotFound with the nearest name that the ledger knows."""
    async with database.transaction(writes=False) as tx:
        known = sorted(str(row["name"]) for row in await tx.fetch(sql))
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"it knows {', '.join(map(repr, known[:8])) or 'none yet'}"
        raise NotFound(f"the ledger has no {what} '{name[:80]}'; {hint}", param=what)


def _value(row: Row, kind: type[T]) -> T:
    """Make a named tuple of a row whose columns have its names."""
    return msgspec.convert(list(row.values())[-len(kind._fields) :], kind)


def _day(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns / 1e9, UTC):%Y-%m-%d}"
