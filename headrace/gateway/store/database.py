"""What the gateway asks of a database: transactions, and batches that are written in one piece.

Owns no connection; `store.sqlite` and `store.postgres` do. SQL is written once, in the subset that both read, with
numbered places ($1, $2, …) that occur once each, in order. Failures of the database itself are `StoreUnavailable`;
a broken rule (a foreign key, a duplicate) is `RuleBroken`, which the caller turns into words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol

Value = str | int | None
Row = Mapping[str, Value]


class RuleBroken(Exception):
    """The database refused a row: it exists already, or what it refers to does not."""


class Statement(NamedTuple):
    """One SQL command and the rows of arguments it is carried out for."""

    sql: str
    rows: Sequence[Sequence[Value]]


class Transaction(Protocol):
    """Statements that take effect together or not at all."""

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        """Carry out one statement; return its rows."""
        ...


class Database(Protocol):
    """One database. `apply` is the fast path: one hop, one transaction, one commit."""

    dialect: Literal["sqlite", "postgres"]

    async def open(self) -> None:
        """Connect. Raises StoreUnavailable or ConfigError."""
        ...

    async def close(self) -> None:
        """Finish what is under way and disconnect. Idempotent."""
        ...

    def transaction(self, *, writes: bool = True) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction; commits at the end of the block, rolls back on an exception."""
        ...

    async def apply(self, statements: Sequence[Statement]) -> None:
        """Carry out all statements in one transaction. Raises StoreUnavailable; then nothing is changed."""
        ...
