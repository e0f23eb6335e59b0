"""Failures sorted by what to do about them."""

from __future__ import annotations

import email.utils
import json
import time

import pytest

from headrace.gateway.upstream.failure import Kind, of_event, of_status, retry_after_s


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Kind.REJECTED),
        (401, Kind.DEAD_KEY),
        (402, Kind.DEAD_KEY),
        (403, Kind.DEAD_KEY),
        (404, Kind.MISPLACED),
        (408, Kind.TRANSIENT),
        (413, Kind.REJECTED),
        (422, Kind.REJECTED),
        (429, Kind.THROTTLED),
        (500, Kind.TRANSIENT),
        (503, Kind.TRANSIENT),
        (529, Kind.THROTTLED),
        (302, Kind.TRANSIENT),
    ],
)
def test_statuses_are_sorted(status: int, kind: Kind) -> None:
    assert of_status("u", status, {}, b"").kind is kind


def test_a_429_for_lack_of_money_is_a_dead_key() -> None:
    body = json.dumps({"error": {"message": "pay", "code": "insufficient_quota"}}).encode()
    assert of_status("u", 429, {"retry-after": "1"}, body).kind is Kind.DEAD_KEY


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        ("overloaded_error", None, Kind.THROTTLED),
        ("invalid_request_error", None, Kind.REJECTED),
        ("server_error", None, Kind.TRANSIENT),
        ("", 429, Kind.THROTTLED),
        ("", None, Kind.TRANSIENT),
    ],
)
def test_events_are_sorted_by_what_they_say_of_themselves(kind: str, status: int | None, expected: Kind) -> None:
    assert of_event("u", b"{}", status, kind).kind is expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "999999999"}, 3600.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_or_not_believed(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    seconds = retry_after_s({"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)})
    assert seconds is not None
    assert 55 < seconds <= 60


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "bad temperature"}}',
        b'{"error": "bad temperature"}',
        b'{"message": "bad temperature"}',
        b'{"detail": "bad temperature"}',
        b"bad\n  temperature",
    ],
)
def test_the_servers_own_words_are_found(body: bytes) -> None:
    assert of_status("u", 400, {}, body).error.message == "upstream 'u' answered 400: bad temperature"


def test_words_are_short_and_stay_out_of_what_is_logged() -> None:
    failure = of_status("u", 500, {}, b"secret " * 1000)
    assert len(failure.error.message) < 500
    assert failure.problem == "upstream 'u' answered 500"


@pytest.mark.parametrize("status", [401, 404, 500])
def test_faults_between_servers_are_not_the_callers(status: int) -> None:
    assert of_status("u", status, {}, b"").error.http_status == 502
