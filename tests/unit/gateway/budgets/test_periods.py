"""Periods of budgets: calendar, rolling, and days on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import InvalidRequest
from headrace.gateway.budgets.account import Spend
from headrace.gateway.budgets.periods import (
    CALENDAR,
    check_period,
    check_timezone,
    period_end,
    period_key,
    period_start,
    show_period,
)


def unix(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("period", "timezone", "now", "start", "end"),
    [
        ("hour", "UTC", "2026-11-21T10:59:59", "2026-11-21T10:00", "2026-11-21T11:00"),
        ("day", "UTC", "2026-11-21T00:00", "2026-11-21T00:00", "2026-11-22T00:00"),
        ("week", "UTC", "2026-11-21T12:00", "2026-11-16T00:00", "2026-11-23T00:00"),
        ("month", "UTC", "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("month", "UTC", "2028-02-29T01:00", "2028-02-01T00:00", "2028-03-01T00:00"),
        ("day", "America/New_York", "2026-11-21T04:59", "2026-11-20T05:00", "2026-11-21T05:00"),
        ("day", "Europe/London", "2026-03-29T12:00", "2026-03-29T00:00", "2026-03-29T23:00"),  # clocks go forward
        ("day", "Europe/London", "2026-10-25T12:00", "2026-10-24T23:00", "2026-10-26T00:00"),  # and back
    ],
)
def test_a_calendar_period_begins_and_ends_at_its_zones_midnight(
    period: str, timezone: str, now: str, start: str, end: str
) -> None:
    found = [period_start(period, timezone, unix(now)), period_end(period, timezone, unix(now))]
    assert found == [datetime.fromisoformat(start).replace(tzinfo=UTC), datetime.fromisoformat(end).replace(tzinfo=UTC)]


@given(st.integers(1_700_000_000, 2_000_000_000), st.sampled_from(CALENDAR), st.sampled_from(["UTC", "Europe/London"]))
def test_each_moment_is_in_one_period(now_s: int, period: str, timezone: str) -> None:
    start, end = period_start(period, timezone, now_s), period_end(period, timezone, now_s)
    assert start is not None
    assert end is not None
    assert start.timestamp() <= now_s < end.timestamp()
    assert period_key(period, timezone, start.timestamp()) == period_key(period, timezone, now_s)
    assert period_start(period, timezone, end.timestamp()) == end
    assert end - start <= timedelta(days=31, hours=1)


def test_other_periods_have_no_boundary() -> None:
    for period in ("total", "task", "rolling:3600"):
        assert period_key(period, "UTC", 0) == period_key(period, "UTC", 1e9) == period


def test_a_rolling_period_is_kept_in_seconds() -> None:
    assert [check_period(f"rolling:{text}") for text in ("90", "2h", "30d", "4w")] == [
        "rolling:90", "rolling:7200", "rolling:2592000", "rolling:2419200",
    ]  # fmt: skip


@pytest.mark.parametrize("period", ["rolling:90", "rolling:2h", "rolling:30d", "rolling:4w", "day", "task"])
def test_a_period_is_shown_as_it_was_given(period: str) -> None:
    assert show_period(check_period(period)) == period


@given(st.integers(60, 10**6), st.lists(st.tuples(st.integers(0, 10**5), st.integers(1, 9)), min_size=1, max_size=20))
def test_a_rolling_sum_says_when_enough_of_it_has_left_the_window(window_s: int, spends: list[tuple[int, int]]) -> None:
    spend, now_s = Spend.named(f"b/0/all/rolling:{window_s}"), 1_800_000_000
    for wait_s, nano in spends:
        now_s += wait_s
        spend.roll(now_s)
        spend.spend(nano, now_s)
    had = spend.spent_nano
    at_s = spend.frees_at_s(1 + had // 2)
    assert at_s is not None
    spend.roll(at_s - 1)
    assert spend.spent_nano > had - 1 - had // 2
    spend.roll(at_s)
    assert spend.spent_nano <= had - 1 - had // 2
    assert (spend.frees_at_s(0), spend.frees_at_s(had + 1)) == (None, None)
    assert Spend.named("b/0/all/day@x").frees_at_s(1) is None


@pytest.mark.parametrize("period", ["", "year", "rolling", "rolling:", "rolling:1", "rolling:9999d", "Day"])
def test_a_period_that_does_not_exist_is_refused(period: str) -> None:
    with pytest.raises(InvalidRequest, match="rolling:30d"):
        check_period(period)


@pytest.mark.parametrize("name", ["Mars/Base", "", "../etc/passwd", "UTC\0"])
def test_a_time_zone_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="Europe/London"):
        check_timezone(name)


@given(st.integers(60, 100_000), st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 1000)), max_size=40))
def test_a_rolling_sum_is_never_less_than_what_was_spent_in_the_window(
    window_s: int, spending: list[tuple[int, int]]
) -> None:
    spend, now_s, log = Spend.named(f"b/0/all/rolling:{window_s}"), 1_800_000_000, []
    for gap_s, nano in spending:
        now_s += gap_s
        spend.roll(now_s)
        spend.spend(nano, now_s)
        log.append((now_s, nano))
        inside = sum(nano for at_s, nano in log if at_s > now_s - window_s)
        longer = sum(nano for at_s, nano in log if at_s > now_s - window_s - 2 * max(1, window_s // 60))
        assert inside <= spend.spent_nano <= longer
        assert spend.spent_nano == sum(spend.slices.values())
