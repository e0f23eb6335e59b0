"""What the commands that keep accounts share: the database they work on, and how times are written.

Owns the connection of one command. The schema is brought up to date first, so the first command makes the database.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from headrace.cli.configured import settings_from
from headrace.core.errors import ConfigError
from headrace.core.settings import read_secret
from headrace.gateway.audit import Chain, Journal, KeyRing
from headrace.gateway.store import Database, migrate, open_database

T = TypeVar("T")
_DURATION = re.compile(r"(\d{1,9})(s|m|h|d|w)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def with_database(args: argparse.Namespace, work: Callable[[Database], Awaitable[T]]) -> T:
    """Carry out `work` on the configured database, its schema up to date."""
    url = settings_from(args).database

    async def run() -> T:
        database = open_database(url)
        await database.open()
        try:
            await migrate(database)
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def journal_of(args: argparse.Namespace, database: Database) -> Journal:
    """Return what writes down the changes of this command, in the name of who runs it. Raises ConfigError."""
    audit = settings_from(args).audit
    if audit.record == "none":
        return Journal()
    keys = KeyRing.read(audit.key, audit.old_keys, read_secret)
    return Journal(Chain(database.dialect, keys), actor=f"cli/{_user()}")


def _user() -> str:
    import os
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def print_json(value: object) -> None:
    """Write one JSON document."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def seconds(text: str) -> int:
    """Read a length of time: 30s, 15m, 24h, 90d, 2w. Raises ConfigError."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ConfigError(f"'{text}' is no length of time; write a number with s, m, h, d or w, such as 90d")
    return int(found[1]) * _UNIT_S[found[2]]


def moment(text: str) -> int:
    """Read a time to come as Unix seconds: a length from now, or a date (its beginning, UTC). Raises ConfigError."""
    from datetime import UTC, datetime

    if _DURATION.fullmatch(text):
        return int(time.time()) + seconds(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError as err:
        raise ConfigError(f"'{text}' is no time; write a length such as 90d, or a date such as 2027-01-31") from err
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


def day(time_s: int | None) -> str:
    """Spell a time for a table."""
    return "" if time_s is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(time_s))
