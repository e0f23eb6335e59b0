"""What a request meets is worked out once a minute, and never another task's or another caller's."""

from __future__ import annotations

from headrace.gateway.admission import Rulebook
from headrace.gateway.budgets.rules import BudgetRule
from headrace.gateway.limits.rules import LimitRule, What

NOON_S = 1_700_049_600.0  # a full hour


def budget(period: str, subject: str = "tenant:*") -> BudgetRule:
    return BudgetRule(
        id=f"b-{period}", subject=subject, model="", period=period, timezone="UTC", limit_nano=100, soft_nano=None,
        is_hard=True, epoch=0,
    )  # fmt: skip


def limit(what: What, per: str) -> LimitRule:
    return LimitRule(id=f"l-{what}", subject="all", model="", what=what, per=per, amount=7)


def test_a_new_period_begins_for_callers_that_go_on_asking() -> None:
    rulebook = Rulebook()
    rulebook.replace([], [budget("hour")])
    early = [rulebook.terms("a", "k", "m", "", NOON_S - before_s) for before_s in (2.0, 1.0)]
    late = rulebook.terms("a", "k", "m", "", NOON_S)
    assert early[0] is early[1]
    assert early[0].spends != late.spends


def test_callers_and_models_meet_their_own_accounts() -> None:
    rulebook = Rulebook()
    rulebook.replace([], [budget("total")])
    found = [rulebook.terms(*who, "", NOON_S).spends for who in (("a", "k", "m"), ("b", "k2", "m"), ("", "", "m"))]
    assert found == [("b-total/0/tenant:a/total",), ("b-total/0/tenant:b/total",), ()]


def test_each_task_meets_its_own_account_and_who_names_none_meets_none() -> None:
    rulebook = Rulebook()
    rulebook.replace([limit(What.STEPS, "task")], [budget("task")])
    spends = [rulebook.terms("a", "k", "m", task, NOON_S).spends for task in ("t", "u", "", "t")]
    assert spends == [("b-task/0/tenant:a/task/t",), ("b-task/0/tenant:a/task/u",), (), spends[0]]
    assert [hold.account for hold in rulebook.terms("a", "k", "m", "u", NOON_S).limits] == ["l-steps/all/u"]
    assert not rulebook.terms("a", "k", "m", "t", NOON_S).is_lendable


def test_new_rules_are_met_at_once() -> None:
    rulebook = Rulebook()
    rulebook.replace([limit(What.TOKENS, "minute")], [])
    before = rulebook.terms("a", "k", "m", "", NOON_S)
    rulebook.replace([limit(What.PARALLEL, "")], [])
    after = rulebook.terms("a", "k", "m", "", NOON_S)
    assert (before.most_lent, before.parallel) == (7, ())
    assert (after.most_lent, after.parallel) == (None, ("l-parallel/all",))
