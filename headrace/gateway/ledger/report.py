"""Reading the ledger: what each tenant, key, model or day used, was charged and cost; what nobody used.

Owns the queries. Reads only. Amounts are whole nano-dollars and nanoseconds, summed by the database.
Four numbers must not be mixed up: `charged` is tokens times the price, what a customer owes; `machine` is the
request's part of the engine's time at the machine's rate; the pool (loading, idle, recomputed, abandoned) is the rest
of the bill; `reported` is what remote upstreams say that they charge for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from headrace.econ import EngineSpan, divide
from headrace.gateway.ledger.refusals import RefusalRow
from headrace.gateway.store import Database, Row

By = Literal["tenant", "key", "model", "task", "day"]
_DAY_NS = 86_400 * 10**9
_GROUPS: dict[By, str] = {
    "tenant": "tenant",
    "key": "key_id",
    "model": "model",
    "task": "task",
    "day": f"settled_ns / {_DAY_NS}",
}
_PAGE = 1_000
_LAST = ("rent_ns", "rent_nano", "cache_write_1h", "reported_nano", "priced_nano")
_COUNTED = {
    "unpriced": "CASE WHEN cost_nano IS NULL THEN 1 ELSE 0 END",
    "reported": "CASE WHEN reported_nano IS NULL THEN 0 ELSE 1 END",
    "compared_nano": "CASE WHEN priced_nano IS NULL THEN 0 ELSE reported_nano END",
    "unrated": "CASE WHEN engine_ns IS NOT NULL AND machine_nano IS NULL THEN 1 ELSE 0 END",
}

_REFUSED: dict[By, str] = {**_GROUPS, "task": "''", "day": f"until_ns / {_DAY_NS}"}


class UsageLine(NamedTuple):
    """One group. `pool_nano` is its share of the pool, where the report allocates it."""

    group: str
    requests: int
    input_uncached: int
    cache_read: int
    cache_write: int
    output_text: int
    output_reasoning: int
    engine_ns: int
    machine_nano: int
    charged_nano: int
    unpriced: int  # requests whose price was not known
    pool_nano: int = 0
    rent_ns: int = 0  # of the engine time: for the memory of cached tokens; rent_nano: of the machine's cost
    rent_nano: int = 0
    refused: int = 0  # calls turned away, which cost nothing and are in none of the other numbers
    cache_write_1h: int = 0  # written to a provider's cache for an hour; `cache_write`: for its usual time
    reported: int = 0  # requests whose remote upstream said what they cost
    reported_nano: int = 0  # what they said
    compared_nano: int = 0  # of that: for requests whose price is known; priced_nano: what the price says of the same
    priced_nano: int = 0
    unrated: int = 0  # requests on a machine whose rate was not known: their engine time is in no amount


class PoolLine(NamedTuple):
    """Engine time that no request is charged for, and what it cost."""

    engines: int
    total_ns: int
    loading_ns: int
    recomputed_ns: int
    abandoned_ns: int
    idle_ns: int
    cached_ns: int  # set aside for cached prefixes, less the rent that requests paid of it
    pool_nano: int
    unrated_ns: int = 0  # of the total: on a machine whose rate was not known; its cost is in no amount


async def usage(database: Database, by: By, from_ns: int, until_ns: int) -> list[UsageLine]:
    """Sum what was settled from `from_ns` until before `until_ns`, the dearest first."""
    sums = ", ".join(
        f"CAST(COALESCE(SUM({column}), 0) AS BIGINT) AS {name}"
        for column, name in (
            *((column, column) for column in (*UsageLine._fields[2:9], *_LAST)),
            ("cost_nano", "charged_nano"),
            *((value, name) for name, value in _COUNTED.items()),
        )
    )
    async with database.transaction(writes=False) as tx:
        rows = await tx.fetch(
            f"SELECT {_GROUPS[by]} AS grouped, COUNT(*) AS requests, {sums} FROM settlements "
            f"WHERE settled_ns >= $1 AND settled_ns < $2 GROUP BY {_GROUPS[by]}",
            from_ns,
            until_ns,
        )
        refused = await tx.fetch(
            f"SELECT {_REFUSED[by]} AS grouped, CAST(SUM(num) AS BIGINT) AS num FROM refusals "
            f"WHERE until_ns >= $1 AND until_ns < $2 GROUP BY {_REFUSED[by]}",
            from_ns,
            until_ns,
        )
    lines = [_usage_line(row, by) for row in rows]
    lines = _with_refused(lines, {_group(row["grouped"], by): _number(row["num"]) for row in refused})
    if by == "day":
        return sorted(lines)
    return sorted(lines, key=lambda line: (-line.charged_nano, -line.machine_nano, line.group))


async def pool(database: Database, from_ns: int, until_ns: int) -> PoolLine:
    """Sum the engine time of the spans that ended in the period."""
    columns = {name: name for name in PoolLine._fields[1:]}
    columns["pool_nano"] = "pool_nano + COALESCE(cached_nano, 0)"
    columns["unrated_ns"] = "CASE WHEN nano_per_hour IS NULL THEN total_ns ELSE 0 END"
    sums = ", ".join(f"CAST(COALESCE(SUM({column}), 0) AS BIGINT) AS {name}" for name, column in columns.items())
    async with database.transaction(writes=False) as tx:
        (row,) = await tx.fetch(
            f"SELECT COUNT(DISTINCT engine) AS engines, {sums} FROM engine_spans "
            "WHERE until_ns >= $1 AND until_ns < $2",
            from_ns,
            until_ns,
        )
    return PoolLine(*(_number(row[name]) for name in PoolLine._fields))


def allocate(lines: Sequence[UsageLine], pool_nano: int) -> list[UsageLine]:
    """Add to each line its share of the pool by engine time, to the nano-dollar; nobody used anything: unchanged."""
    if not any(line.engine_ns for line in lines):
        return list(lines)
    shares = divide(pool_nano, [line.engine_ns for line in lines])
    return [line._replace(pool_nano=share) for line, share in zip(lines, shares, strict=True)]


async def reasons(database: Database, from_ns: int, until_ns: int) -> dict[str, int]:
    """Count the refusals whose rows end in the period by their reason, the most frequent first."""
    async with database.transaction(writes=False) as tx:
        rows = await tx.fetch(
            "SELECT reason, CAST(SUM(num) AS BIGINT) AS num FROM refusals WHERE until_ns >= $1 AND until_ns < $2 "
            "GROUP BY reason ORDER BY num DESC, reason",
            from_ns,
            until_ns,
        )
    return {str(row["reason"]): _number(row["num"]) for row in rows}


async def refusals(database: Database, from_ns: int, until_ns: int) -> AsyncIterator[list[Row]]:
    """Yield the rows of refused calls that end in the period in pages, by time."""
    after_ns, after_id = from_ns, ""
    while True:
        async with database.transaction(writes=False) as tx:
            rows = await tx.fetch(
                f"SELECT {', '.join(RefusalRow._fields)} FROM refusals WHERE until_ns < $1 "
                "AND (until_ns > $2 OR (until_ns = $3 AND id > $4)) "
                f"ORDER BY until_ns, id LIMIT {_PAGE}",
                *(until_ns, after_ns, after_ns, after_id),
            )
        if not rows:
            return
        yield rows
        after_ns, after_id = _number(rows[-1]["until_ns"]), str(rows[-1]["id"])


async def settlements(database: Database, from_ns: int, until_ns: int) -> AsyncIterator[list[Row]]:
    """Yield the settled rows of the period in pages, by time."""
    after_ns, after_id = from_ns, ""
    while True:
        async with database.transaction(writes=False) as tx:
            rows = await tx.fetch(
                "SELECT * FROM settlements WHERE settled_ns < $1 "
                "AND (settled_ns > $2 OR (settled_ns = $3 AND id > $4)) "
                f"ORDER BY settled_ns, id LIMIT {_PAGE}",
                *(until_ns, after_ns, after_ns, after_id),
            )
        if not rows:
            return
        yield rows
        after_ns, after_id = _number(rows[-1]["settled_ns"]), str(rows[-1]["id"])


async def spans(database: Database, from_ns: int, until_ns: int) -> list[Row]:
    """Return the engine spans that ended in the period, by time."""
    async with database.transaction(writes=False) as tx:
        return await tx.fetch(
            f"SELECT {', '.join(EngineSpan._fields)} FROM engine_spans WHERE until_ns >= $1 AND until_ns < $2 "
            "ORDER BY until_ns, id",
            from_ns,
            until_ns,
        )


def _with_refused(lines: list[UsageLine], refused: dict[str, int]) -> list[UsageLine]:
    """Add to each group its refusals; a group that has nothing else gets a line."""
    known = {line.group for line in lines}
    nothing = [0] * len(UsageLine._fields[1:11])
    lines = [*lines, *(UsageLine(group, *nothing) for group in refused if group not in known)]
    return [line._replace(refused=refused.get(line.group, 0)) for line in lines]


def _group(value: object, by: By) -> str:
    if by != "day":
        return str(value)
    return f"{datetime.fromtimestamp(_number(value) * 86_400, UTC):%Y-%m-%d}"


def _usage_line(row: Row, by: By) -> UsageLine:
    sums = {name: _number(row[name]) for name in (*UsageLine._fields[1:11], *_LAST, *_COUNTED)}
    return UsageLine(group=_group(row["grouped"], by), **sums)


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
