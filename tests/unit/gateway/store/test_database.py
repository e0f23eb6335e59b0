"""The database behind the gateway: the same promises from SQLite and from Postgres."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from headrace.core.errors import ConfigError, StoreUnavailable
from headrace.gateway.store import Database, RuleBroken, Transaction, migrate, open_database
from headrace.gateway.store.sqlite import SqliteDatabase

INSERT = "INSERT INTO secrets VALUES ($1, $2)"


def run(url: str, test: Any) -> Any:
    async def whole() -> Any:
        database = open_database(url)
        await database.open()
        try:
            await migrate(database)
            return await test(database)
        finally:
            await database.close()

    return asyncio.run(whole())


async def add(database: Database, *rows: tuple[str, str]) -> None:
    """Insert rows in one piece, the way that the hot path does."""

    async def work(tx: Transaction) -> None:
        await tx.execute_many(INSERT, rows)

    await database.run(work)


async def twice(database: Database, name: str) -> None:
    async with database.transaction() as tx:
        await tx.fetch(INSERT, name, "1")
        await tx.fetch(INSERT, name, "1")


async def names(database: Database) -> list[Any]:
    async with database.transaction(writes=False) as tx:
        return [row["name"] for row in await tx.fetch("SELECT name FROM secrets ORDER BY name")]


def test_the_schema_is_made_once(url: str) -> None:
    async def again(database: Database) -> int:
        return await migrate(database)

    assert run(url, again) == 0


def test_a_schema_of_a_newer_program_is_refused(url: str) -> None:
    async def newer(database: Database) -> None:
        async with database.transaction() as tx:
            await tx.fetch("INSERT INTO migrations VALUES (999, 'x', 0)")
        with pytest.raises(ConfigError, match="step 999"):
            await migrate(database)

    run(url, newer)


def test_a_transaction_takes_effect_whole_or_not_at_all(url: str) -> None:
    async def test(database: Database) -> None:
        with pytest.raises(RuleBroken):
            await twice(database, "a")
        async with database.transaction() as tx:
            await tx.fetch(INSERT, "b", "1")
        with pytest.raises(RuleBroken):
            await add(database, ("c", "1"), ("b", "2"))
        await add(database, ("d", "1"), ("e", "1"))
        assert await names(database) == ["b", "d", "e"]

    run(url, test)


def test_a_cancelled_transaction_leaves_the_database_usable(url: str) -> None:
    async def test(database: Database) -> None:
        is_inside = asyncio.Event()

        async def writer() -> None:
            async with database.transaction() as tx:
                await tx.fetch(INSERT, "a", "1")
                is_inside.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(writer())
        await is_inside.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await add(database, ("b", "1"))
        assert await names(database) == ["b"]

    run(url, test)


@pytest.mark.parametrize("num_turns", range(4))
def test_cancelling_at_any_moment_leaves_no_transaction_open(tmp_path: Path, num_turns: int) -> None:
    async def test(database: Database) -> None:
        async def writer() -> None:
            async with database.transaction() as tx:
                await tx.fetch(INSERT, "a", "1")

        task = asyncio.ensure_future(writer())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await add(database, ("b", "1"))
        assert "b" in await names(database)

    run(f"sqlite:///{tmp_path / 'a.db'}", test)


def test_a_closed_database_is_unavailable(url: str) -> None:
    async def test(database: Database) -> None:
        await database.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await add(database)

    run(url, test)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.db"

    async def nothing(database: Database) -> None: ...

    run(f"sqlite:///{path}", nothing)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_lock_of_another_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.gateway.store.sqlite.BUSY_S", 0.01)
    path = tmp_path / "a.db"

    async def test(database: Database) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await add(database, ("a", "1"))
        other.execute("ROLLBACK")
        other.close()
        await add(database, ("b", "1"))
        assert await names(database) == ["b"]

    run(f"sqlite:///{path}", test)


def test_the_log_is_folded_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def test(database: Database) -> int:
        for number in range(1200):
            await add(database, (str(number), "x" * 500))
        return path.stat().st_size

    assert run(f"sqlite:///{path}", test) > 500 * 250  # without folding the file would hold nothing but its header


@pytest.mark.parametrize("text", ["mysql://x/y", "sqlite://", "sqlite:///", "accounts.db", "postgresql://"])
def test_a_url_of_another_form_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///PATH") as caught:
        open_database(text + "secret" if text == "mysql://x/y" else text)
    assert "secret" not in caught.value.message


def test_no_database_is_told_how_to_set_one() -> None:
    with pytest.raises(ConfigError, match="HEADRACE_DATABASE"):
        open_database(None)


def test_a_path_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    database = SqliteDatabase(tmp_path / "file" / "a.db")
    with pytest.raises(ConfigError, match="cannot be opened"):
        asyncio.run(database.open())


def test_a_postgres_that_is_not_there_is_a_configuration_error_without_the_password() -> None:
    database = open_database("postgresql://user:hunter2@127.0.0.1:1/x")
    with pytest.raises(ConfigError, match="cannot be reached") as caught:
        asyncio.run(database.open())
    assert "hunter2" not in caught.value.message
