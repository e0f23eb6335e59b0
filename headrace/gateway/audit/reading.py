"""Reading the log: rows by time, caller, model and decision, a page at a time.

Owns the queries. Reads only; content stays closed here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from headrace.gateway.audit.chain import AuditRow
from headrace.gateway.store import Database, Value

MAX_PAGE = 1_000
_decoder = msgspec.json.Decoder(AuditRow)


class Filter(NamedTuple):
    """Which rows; empty texts mean any. Times are Unix nanoseconds, the end excluded."""

    since_ns: int = 0
    until_ns: int = 1 << 62
    tenant: str = ""
    key_id: str = ""
    request_id: str = ""
    model: str = ""
    kind: str = ""
    decision: str = ""
    reason: str = ""


class Found(NamedTuple):
    """One row, its digest, and its closed content if there is any."""

    row: AuditRow
    digest: str
    content: str | None


async def read_rows(database: Database, wanted: Filter, *, after: int = 0, limit: int = MAX_PAGE) -> list[Found]:
    """Return the next rows behind `after`, in order, at most `limit` of them."""
    return await _read(database, wanted, after, f"seq LIMIT {limit}")


async def newest_rows(database: Database, wanted: Filter, limit: int) -> list[Found]:
    """Return the last rows, in order, at most `limit` of them."""
    return (await _read(database, wanted, 0, f"seq DESC LIMIT {limit}"))[::-1]


async def _read(database: Database, wanted: Filter, after: int, order: str) -> list[Found]:
    conditions = ["seq > $1", "at_ns >= $2", "at_ns < $3"]
    values: list[Value] = [after, wanted.since_ns, wanted.until_ns]
    for name in Filter._fields[2:]:
        if text := getattr(wanted, name):
            values.append(text)
            conditions.append(f"{name} = ${len(values)}")
    sql = f"SELECT body, digest, content FROM audit_rows WHERE {' AND '.join(conditions)} ORDER BY {order}"
    async with database.transaction(writes=False) as tx:
        rows = await tx.fetch(sql, *values)
    return [
        Found(
            _decoder.decode(str(row["body"])),
            str(row["digest"]),
            None if row["content"] is None else str(row["content"]),
        )
        for row in rows
    ]


async def all_rows(database: Database, wanted: Filter) -> AsyncIterator[Found]:
    """Yield every row that fits, in order."""
    after = 0
    while page := await read_rows(database, wanted, after=after):
        for found in page:
            yield found
        after = page[-1].row.seq
