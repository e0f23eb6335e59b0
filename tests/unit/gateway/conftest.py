"""Databases for the gateway's tests: every test that takes `url` runs on SQLite and on Postgres."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'accounts.db'}"
    found: str = request.getfixturevalue("fresh_postgres")
    return found
