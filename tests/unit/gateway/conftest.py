"""Databases for the gateway's tests: every test that takes `url` runs on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import find_binaries, running_postgres

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no Postgres here; on Debian: apt-get install postgresql")
    with running_postgres(binaries) as url:
        yield url


@pytest.fixture
def fresh_postgres(postgres_url: str) -> str:
    """An empty schema of its own: a database each would take a third of a second."""
    import asyncpg

    name = f"test_{next(_numbers)}"

    async def create() -> None:
        connection: Any = await asyncpg.connect(postgres_url)
        await connection.execute(f"CREATE SCHEMA {name}")
        await connection.close()

    asyncio.run(create())
    return f"{postgres_url}?search_path={name}"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'accounts.db'}"
    found: str = request.getfixturevalue("fresh_postgres")
    return found
