"""From the setting `database` to a database: sqlite:///PATH or postgresql://USER@HOST/NAME.

Owns nothing. Invariant: a URL is never shown whole, since it may hold a password.
"""

from __future__ import annotations

from pathlib import Path

from headrace.core.errors import ConfigError
from headrace.gateway.store.database import Database
from headrace.gateway.store.postgres import PostgresDatabase
from headrace.gateway.store.sqlite import SqliteDatabase

_FORMS = "sqlite:///PATH, sqlite:////ABSOLUTE/PATH or postgresql://USER:PASSWORD@HOST/NAME"


def open_database(url: str | None) -> Database:
    """Return the database behind `url`, not connected yet. Raises ConfigError."""
    if url is None:
        raise ConfigError(
            f"no database is configured; set 'database' (--database, HEADRACE_DATABASE) to {_FORMS}", param="database"
        )
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return SqliteDatabase(Path(rest[1:]).expanduser())
    if scheme in ("postgresql", "postgres") and rest:
        return PostgresDatabase(url)
    raise ConfigError(f"the database URL begins with '{scheme[:20]}:'; write {_FORMS}", param="database")
