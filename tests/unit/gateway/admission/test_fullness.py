"""What monitors are told of budgets: the fullest account of each, and nothing of periods that are over."""

from __future__ import annotations

from headrace.gateway.admission.asks import BudgetHold
from headrace.gateway.admission.fullness import Fullness
from headrace.gateway.budgets.rules import BudgetRule

HOUR_NS = 3600 * 10**9


def hold(budget: str, member: str, period: str, now_ns: int) -> BudgetHold:
    rule = BudgetRule(
        id=budget, subject="tenant:*", model="", period=period, timezone="UTC", limit_nano=100, soft_nano=None,
        is_hard=True, epoch=0,
    )  # fmt: skip
    return BudgetHold(rule, rule.account(member, "", now_ns / 1e9))


def test_the_fullest_account_speaks_for_its_budget() -> None:
    fullness = Fullness()
    fullness.note((hold("b", "tenant:x", "day", 0), hold("b", "tenant:y", "day", 0)), (30, 90), 0)
    assert fullness.read(1) == {"b": 0.9}
    fullness.note((hold("b", "tenant:y", "day", 0),), (20,), 2)
    assert fullness.read(3) == {"b": 0.3}


def test_what_was_spent_in_a_period_that_is_over_is_not_told() -> None:
    fullness = Fullness()
    fullness.note((hold("b", "all", "hour", 0), hold("c", "all", "total", 0)), (30, 40), 0)
    fullness.note((hold("d", "all", "rolling:3600", 0),), (50,), HOUR_NS // 2)
    assert fullness.read(HOUR_NS - 1) == {"d": 0.5, "c": 0.4, "b": 0.3}
    assert fullness.read(HOUR_NS) == {"d": 0.5, "c": 0.4}
    assert fullness.read(2 * HOUR_NS) == {"c": 0.4}


def test_accounts_and_budgets_that_are_told_are_bounded() -> None:
    fullness = Fullness()
    for number in range(3000):
        fullness.note((hold(f"b{number}", "all", "total", 0),), (number,), 0)
    shown = fullness.read(1)
    assert len(shown) == 50
    assert max(shown, key=lambda budget: shown[budget]) == "b2999"
    assert len(fullness._seen) == 1000
