"""Databases for the gateway's tests: every test that takes `url` runs on SQLite and on Postgres."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def patient_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a database that the machine holds up; tests of these limits set their own."""
    monkeypatch.setattr("headrace.gateway.store.postgres.COMMAND_S", 60.0)
    monkeypatch.setattr("headrace.gateway.store.postgres.CONNECT_S", 60.0)
    monkeypatch.setattr("headrace.gateway.store.sqlite.BUSY_S", 60.0)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'accounts.db'}"
    found: str = request.getfixturevalue("fresh_postgres")
    return found
