"""What the admin API takes and gives: one struct per body, the names of the wire.

Owns field names and their docstrings, which become the OpenAPI document. Money is in dollars, as decimal text, so that
no reader's floats change it. Times are Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from headrace.econ.money import show_usd
from headrace.gateway.audit import AuditRow
from headrace.gateway.budgets import BudgetRule
from headrace.gateway.budgets.registry import AccountState
from headrace.gateway.identity import Role
from headrace.gateway.limits import What
from headrace.gateway.store.pages import MAX_PAGE, USUAL_PAGE

Text = Annotated[str, msgspec.Meta(max_length=256)]
Whole = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
Usd = Annotated[str, msgspec.Meta(max_length=40, description="dollars as a decimal number, such as 12.50")]
T = TypeVar("T")


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller sends; unknown fields are refused by name."""


class NewTenant(Body, frozen=True, kw_only=True):
    """A tenant to add."""

    id: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9._-]{0,63}$", max_length=64)]
    name: Text | None = None


class TenantChange(Body, frozen=True, kw_only=True):
    """What to change of a tenant; what is left out stays."""

    name: Text | None = None
    disabled: bool | None = None


class NewKey(Body, frozen=True, kw_only=True):
    """A key to make. `models` null: all; `expires_s` null: never."""

    name: Text = ""
    role: Role = Role.USER
    models: list[Text] | None = None
    expires_s: Whole | None = None


class KeyChange(Body, frozen=True, kw_only=True):
    """What to change of a key; what is left out stays. `models` null: all; `expires_s` null: never."""

    name: Text | None = None
    models: list[Text] | UnsetType | None = UNSET
    expires_s: Whole | UnsetType | None = UNSET


class Rotation(Body, frozen=True, kw_only=True):
    """How long the present secret still works, in seconds."""

    grace_s: Whole = 0


class LimitChange(Body, frozen=True, kw_only=True):
    """A limit to add, or a new amount for the one of the same subject, model and period."""

    subject: Text
    what: What
    amount: Whole
    per: Literal["", "minute", "hour", "day", "task"] = ""
    model: Text = ""


class BudgetChange(Body, frozen=True, kw_only=True):
    """A budget to add, or a change of the one for the same subject, model and period."""

    subject: Text
    limit_usd: Usd
    period: Text = "month"
    model: Text = ""
    hard: bool = True
    warn_at_usd: Usd | None = None
    timezone: Text = "UTC"


class AuditQuery(Body, frozen=True, kw_only=True):
    """Which rows of the audit log: those behind row `after`, from `since_s` until before `until_s` (Unix time)."""

    after: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    since_s: Annotated[int, msgspec.Meta(ge=0, le=2**32)] = 0
    until_s: Annotated[int, msgspec.Meta(ge=0, le=2**32)] = 2**32
    tenant: Text = ""
    key: Text = ""
    request: Text = ""
    model: Text = ""
    kind: Text = ""
    decision: Text = ""
    reason: Text = ""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the audit log and its digest. Content is not shown here."""

    row: AuditRow
    digest: str
    has_content: bool


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in order. `after` asks for the next page; null: there is none yet."""

    data: list[AuditEntry]
    after: int | None


class AccountShown(msgspec.Struct, frozen=True, kw_only=True):
    """Where one account of a budget stands."""

    account: str
    spent_usd: str
    reserved_usd: str
    updated_s: int


class BudgetShown(msgspec.Struct, frozen=True, kw_only=True):
    """One budget and its accounts, the one that moved last first."""

    id: str
    subject: str
    model: str
    period: str
    timezone: str
    limit_usd: str
    warn_at_usd: str | None
    hard: bool
    accounts: list[AccountShown]


class PageQuery(Body, frozen=True, kw_only=True):
    """Which page of a list: `limit` rows at most, `after` the `last_id` of the page before."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = USUAL_PAGE
    after: Text = ""


class Listing(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A page of them, by id. Where `has_more`, the next page is the one `after` this one's `last_id`."""

    data: list[T]
    has_more: bool
    last_id: str | None


def show_budget(rule: BudgetRule, accounts: list[AccountState]) -> BudgetShown:
    """Spell a budget for the wire."""
    return BudgetShown(
        id=rule.id,
        subject=rule.subject,
        model=rule.model,
        period=rule.period,
        timezone=rule.timezone,
        limit_usd=show_usd(rule.limit_nano),
        warn_at_usd=None if rule.soft_nano is None else show_usd(rule.soft_nano),
        hard=rule.is_hard,
        accounts=[
            AccountShown(
                account=state.account,
                spent_usd=show_usd(state.spent_nano),
                reserved_usd=show_usd(state.reserved_nano),
                updated_s=state.updated_s,
            )
            for state in accounts
        ],
    )
