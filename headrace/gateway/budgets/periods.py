"""Periods of budgets: calendar ones with a time zone, rolling ones, the whole life, one task.

Owns nothing. A period is written `hour`, `day`, `week`, `month`, `total`, `task` or `rolling:SECONDS`.
Invariant: a calendar period begins at its zone's own midnight (or full hour), so a day at a change of clocks has 23 or
25 hours and each moment belongs to exactly one period. Weeks begin on Monday, as in ISO 8601.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from headrace.core.errors import InvalidRequest

CALENDAR = ("hour", "day", "week", "month")
OTHERS = ("total", "task")
MAX_ROLLING_S = 366 * 86_400
_ROLLING = re.compile(r"rolling:(\d{1,9})")
_UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


def check_period(period: str) -> str:
    """Return a period as it is kept: `rolling:30d` becomes seconds. Raises InvalidRequest."""
    if period in (*CALENDAR, *OTHERS):
        return period
    found = re.fullmatch(r"rolling:(\d{1,9})([hdw]?)", period)
    length_s = int(found[1]) * _UNITS.get(found[2], 1) if found else 0
    if not 60 <= length_s <= MAX_ROLLING_S:
        raise InvalidRequest(
            f"period '{period[:40]}' is not one of {', '.join((*CALENDAR, *OTHERS))}, "
            "or rolling:30d (hours, days or weeks; one minute to 366 days)",
            param="period",
        )
    return f"rolling:{length_s}"


def check_timezone(name: str) -> str:
    """Return the name of a time zone that exists. Raises InvalidRequest."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as err:
        raise InvalidRequest(
            f"time zone '{name[:60]}' is not known; write UTC, or a name such as Europe/London", param="timezone"
        ) from err
    return name


def rolling_s(period: str) -> int | None:
    """Return the length of a rolling period in seconds, or None for others."""
    found = _ROLLING.fullmatch(period)
    return int(found[1]) if found else None


def show_period(period: str) -> str:
    """Write a period as people do: `rolling:86400` as `rolling:1d`."""
    length_s = rolling_s(period)
    if length_s is None:
        return period
    unit = next((unit for unit in ("w", "d", "h") if length_s % _UNITS[unit] == 0), "")
    return f"rolling:{length_s // _UNITS.get(unit, 1)}{unit}"


def period_key(period: str, timezone: str, now_s: float) -> str:
    """Return the part of an account's name that changes when a new period begins."""
    return period if period not in CALENDAR else _key_of_minute(period, timezone, int(now_s // 60))


@lru_cache(maxsize=256)
def _key_of_minute(period: str, timezone: str, minute: int) -> str:
    """Spell a calendar period, once a minute: no clock is off by a part of one, so none begins within it."""
    return f"{period}@{period_start(period, timezone, minute * 60):%Y-%m-%dT%H:%MZ}"


def period_start(period: str, timezone: str, now_s: float) -> datetime | None:
    """Return when the calendar period that holds `now_s` began, in UTC; None for other periods."""
    if period not in CALENDAR:
        return None
    now = datetime.fromtimestamp(now_s, UTC)
    if period == "hour":
        return now.replace(minute=0, second=0, microsecond=0)
    local = now.astimezone(ZoneInfo(timezone)).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if period == "week":
        local = local - timedelta(days=local.weekday())
    elif period == "month":
        local = local.replace(day=1)
    return local.astimezone(UTC)


def period_end(period: str, timezone: str, now_s: float) -> datetime | None:
    """Return when the next calendar period begins, in UTC; None for other periods."""
    start = period_start(period, timezone, now_s)
    if start is None:
        return None
    if period == "hour":
        return start + timedelta(hours=1)
    local = start.astimezone(ZoneInfo(timezone)).replace(tzinfo=None)
    days = {"day": 1, "week": 7, "month": 31}[period]
    later = local + timedelta(days=days)
    if period == "month":
        later = later.replace(day=1)
    return later.replace(tzinfo=ZoneInfo(timezone)).astimezone(UTC)
