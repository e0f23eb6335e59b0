"""Limits as they stand in the database, and which account of one a request is counted in.

Values only. A limit's subject is `key:ID`, `tenant:ID`, `key:*` or `tenant:*` (each one its own account) or `all`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PERIODS_NS = {"minute": 60 * 10**9, "hour": 3600 * 10**9, "day": 86_400 * 10**9}


class What(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    PARALLEL = "parallel"  # requests under way
    STEPS = "steps"  # requests of one task


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRule:
    """One limit. `per` is minute, hour or day for requests and tokens, `task` for steps, empty for parallel."""

    id: str
    subject: str
    model: str
    what: What
    per: str
    amount: int

    @property
    def period_ns(self) -> int:
        """Return the time in which an empty bucket fills up."""
        return PERIODS_NS[self.per]

    def account(self, member: str, task: str) -> str:
        """Name the account that is counted in."""
        name = f"{self.id}/{member}"
        return f"{name}/{task}" if self.what is What.STEPS else name

    def describe(self) -> str:
        """Say whose limit it is, for the caller that meets it."""
        model = f" on '{self.model}'" if self.model else ""
        what = "requests at a time" if self.what is What.PARALLEL else f"{self.what} per {self.per}"
        return f"{self.amount:,} {what} for {self.subject}{model}"
