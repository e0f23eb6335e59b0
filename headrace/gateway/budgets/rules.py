"""Budgets as they stand in the database, and which account of one a request is charged to.

Values only. A budget's subject is `key:ID`, `tenant:ID`, `key:*` or `tenant:*` (each one its own account) or `all`.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.gateway.budgets.periods import period_key, rolling_s, show_period


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRule:
    """One budget. `limit_nano` is never passed if it `is_hard`; at `soft_nano` callers are warned.

    model  which model's cost counts; empty: all together
    epoch  counts resets: each begins new accounts
    """

    id: str
    subject: str
    model: str
    period: str
    timezone: str
    limit_nano: int
    soft_nano: int | None
    is_hard: bool
    epoch: int

    def account(self, member: str, task: str, now_s: float) -> str:
        """Name the account that is charged now. `member` is the key or tenant, `task` the caller's own name for one."""
        name = f"{self.id}/{self.epoch}/{member}/{period_key(self.period, self.timezone, now_s)}"
        return f"{name}/{task}" if self.period == "task" else name

    def describe(self) -> str:
        """Say whose budget it is, for the caller that meets it."""
        model = f" on '{self.model}'" if self.model else ""
        period = "per task" if self.period == "task" else f"per {show_period(self.period)}"
        return f"{self.subject}{model} {'in total' if self.period == 'total' else period}"


def account_window_s(account: str) -> int | None:
    """Return the window of a rolling budget's account, from its name; None for other accounts."""
    return rolling_s(account.split("/", 4)[3])
