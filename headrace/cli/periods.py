"""The days that a report is about: `--since` and `--until`, UTC, both included."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta

from headrace.core.errors import ConfigError

DAY_NS = 86_400 * 10**9


def period(args: argparse.Namespace) -> tuple[int, int]:
    """Return the first nanosecond and the one after the last. Raises ConfigError."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    until = _date(args.until, "--until") + timedelta(days=1) if args.until else today + timedelta(days=1)
    since = _date(args.since, "--since") if args.since else until - timedelta(days=30)
    if since >= until:
        last = f"--until {args.until}" if args.until else "today"
        raise ConfigError(f"--since {args.since} is not before {last}; give the earlier day first")
    return _nanoseconds(since), _nanoseconds(until)


def _date(text: str, flag: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as err:
        raise ConfigError(f"{flag} is '{text}'; write a day such as 2027-01-31") from err


def _nanoseconds(when: datetime) -> int:
    return int(when.timestamp()) * 10**9
