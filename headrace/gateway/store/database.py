"""What the gateway asks of a database: transactions, step by step or in one piece.

Owns no connection; `store.sqlite` and `store.postgres` do. SQL is written once, in the subset that both read, with
numbered places ($1, $2, …) that occur once each, in order. Failures of the database itself are `StoreUnavailable`;
a broken rule (a foreign key, a duplicate) is `RuleBroken`, which the caller turns into words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeVar

T = TypeVar("T")
Cell = str | int | None
Value = Cell | Sequence[Cell]
Row = Mapping[str, Cell]


class RuleBroken(Exception):
    """The database refused a row: it exists already, or what it refers to does not."""


class Deadlock(Exception):
    """Two transactions waited for each other and this one was given up; it can be carried out again at once."""


class Transaction(Protocol):
    """Statements that take effect together or not at all."""

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        """Carry out one statement; return its rows."""
        ...

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Value]]) -> None:
        """Carry out one statement for each row of arguments."""
        ...


class Database(Protocol):
    """One database."""

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

    async def run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Carry out `work` in one transaction and return its result: the fast path.

        `work` waits for nothing but its transaction. SQLite carries it out in the database's own thread, in one visit.
        """
        ...

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        """Carry out one statement as a transaction of its own; return its rows.

        In force for everybody at once; on the disk a moment later (`store.log_sync`, `store.postgres_lane`).
        """
        ...
