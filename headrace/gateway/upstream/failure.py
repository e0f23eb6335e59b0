"""Why an attempt at a remote upstream failed, sorted by what to do about it.

    REJECTED    the caller's request is at fault           → told to the caller, never tried again
    MISPLACED   this upstream cannot serve it              → another upstream, no blame
    DEAD_KEY    the key is wrong, expired or out of money  → another key or upstream at once
    THROTTLED   too much for this key or this server now   → another key or upstream; the same after Retry-After
    TRANSIENT   refused, reset, silent, 5xx, nonsense      → another upstream, or the same after a pause; breaker
    BUSY        our own `max_parallel` is reached          → another upstream, no blame

Owns the mapping from statuses and headers to kinds. Invariant: `problem`, which goes to logs and admin views, holds no
word of the server's; the caller hears the server's own message, except about keys, which are not the caller's.
Source: the split per key / transient follows Bifrost's retry documentation; RFC 9110 §10.2.3 for Retry-After.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from headrace.core.errors import HeadraceError, UpstreamFailed, UpstreamRefused, UpstreamTimeout

_MAX_WORDS = 400
_MAX_RETRY_AFTER_S = 3600.0


class Kind(StrEnum):
    """What to do about a failure."""

    REJECTED = "rejected"
    MISPLACED = "misplaced"
    DEAD_KEY = "dead_key"
    THROTTLED = "throttled"
    TRANSIENT = "transient"
    BUSY = "busy"


class Failure(Exception):
    """One attempt failed.

    error          what the caller is told if this was the last attempt
    problem        what logs and admin views say
    retry_after_s  what the server asked for; None if it did not
    may_cost       the server had the request and may have computed something
    """

    def __init__(
        self,
        kind: Kind,
        error: HeadraceError,
        retry_after_s: float | None = None,
        *,
        problem: str | None = None,
        may_cost: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.kind = kind
        self.error = error
        self.problem = error.message if problem is None else problem
        self.retry_after_s = retry_after_s
        self.may_cost = may_cost


def transient(upstream: str, problem: str, *, may_cost: bool = False) -> Failure:
    """Make the failure of a server that did not answer, or not sensibly."""
    error = UpstreamFailed(f"upstream '{upstream}' {problem}; try again")
    return Failure(Kind.TRANSIENT, error, may_cost=may_cost)


def timed_out(upstream: str, problem: str, *, may_cost: bool = True) -> Failure:
    """Make the failure of a server that took too long."""
    error = UpstreamTimeout(f"upstream '{upstream}' {problem}; try again")
    return Failure(Kind.TRANSIENT, error, may_cost=may_cost)


def of_status(upstream: str, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """Sort a reply that is an error by its status, its Retry-After and its own words."""
    problem = f"upstream '{upstream}' answered {status}"
    told = UpstreamRefused(f"{problem}: {_words(body)}", http_status=_shown(status))
    wait_s = retry_after_s(headers)
    if status in (401, 402, 403) or (status == 429 and _is_out_of_money(body)):
        rejected = UpstreamFailed(f"{problem} to its key; renew upstreams.{upstream}.api_key")
        return Failure(Kind.DEAD_KEY, rejected, problem=problem)
    if status in (429, 529) or (status == 503 and wait_s is not None):
        return Failure(Kind.THROTTLED, told, wait_s, problem=problem)
    if status in (404, 405, 501):
        return Failure(Kind.MISPLACED, told, problem=problem)
    if status in (408, 409, 425) or status >= 500 or status < 400:
        return Failure(Kind.TRANSIENT, UpstreamFailed(told.message), problem=problem)
    return Failure(Kind.REJECTED, told, problem=problem)


def of_event(upstream: str, payload: bytes, status: int | None, kind: str) -> Failure:
    """Sort an error that came inside a stream. `status` and `kind` are what the event says of itself."""
    guessed = _EVENT_STATUS.get(kind, 500) if status is None else status
    return of_status(upstream, guessed, {}, payload)


_EVENT_STATUS = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "NotFoundError": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 402,
    "overloaded_error": 529,
}


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read `retry-after-ms` or `Retry-After`, in seconds or as a date; None if there is none that makes sense."""
    try:
        if (millis := headers.get("retry-after-ms")) is not None:
            return _bounded(float(millis) / 1000)
        if (text := headers.get("retry-after")) is None:
            return None
        if text.strip().replace(".", "", 1).isdigit():
            return _bounded(float(text))
        return _bounded(email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _bounded(seconds: float) -> float | None:
    return min(max(0.0, seconds), _MAX_RETRY_AFTER_S) if seconds == seconds else None


def _shown(status: int) -> int:
    """Return the status a caller sees: our own credentials and addresses are not the caller's fault."""
    return status if status in (400, 409, 413, 415, 422, 429) else 400 if status == 405 else 502


class _Words(msgspec.Struct):
    message: str | None = None
    code: str | int | None = None
    type: str | None = None


class _ErrorReply(msgspec.Struct):
    error: _Words | str | None = None
    message: str | None = None
    detail: str | None = None
    code: str | int | None = None


def _parse(body: bytes) -> _ErrorReply | None:
    try:
        return msgspec.json.decode(body, type=_ErrorReply)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _words(body: bytes) -> str:
    """Return the server's own message, on one line and short."""
    reply = _parse(body)
    text: str | None = None
    if reply is not None:
        nested = reply.error.message if isinstance(reply.error, _Words) else reply.error
        text = nested or reply.message or reply.detail
    if text is None:
        text = body[:_MAX_WORDS].decode("utf-8", errors="replace")
    line = " ".join(text.split())
    return line[:_MAX_WORDS] if line else "no message"


def _is_out_of_money(body: bytes) -> bool:
    reply = _parse(body)
    if reply is None or not isinstance(reply.error, _Words):
        return False
    return "insufficient_quota" in (reply.error.code, reply.error.type)
