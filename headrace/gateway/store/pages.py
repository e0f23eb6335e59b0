"""Lists by pages: rows by id, those after a given one, so many at most.

Owns nothing. A page does not move when rows before it are added or removed, as pages counted by number would.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from headrace.gateway.store.database import Row, Transaction

MAX_PAGE = 1_000
USUAL_PAGE = 100
T = TypeVar("T")


class Page(NamedTuple):
    """Which rows: those after the row of an id, which need not exist any more; empty: from the first."""

    after: str = ""
    limit: int = USUAL_PAGE


class Found(NamedTuple, Generic[T]):
    """A page of a list, and whether more follow."""

    rows: list[T]
    has_more: bool


async def read_page(tx: Transaction, table: str, page: Page, *, of: tuple[str, str] | None = None) -> Found[Row]:
    """Read a page of a table. `of`: only rows with this value in this column."""
    owned = "" if of is None else f"AND {of[0]} = $2 "
    rows = await tx.fetch(
        f"SELECT * FROM {table} WHERE id > $1 {owned}ORDER BY id LIMIT {page.limit + 1}",
        *(page.after, *(() if of is None else (of[1],))),
    )
    return Found(rows[: page.limit], len(rows) > page.limit)
