"""Which limits and budgets a request meets: the rules, in memory, matched once per caller and model.

What a caller's requests for a model meet is worked out once a minute, in which no period begins, and once for each
task. Owns the last loaded rules; `store.watch` says when to load. Answers without touching the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from headrace.gateway.admission.asks import BudgetHold, LimitHold, Terms, terms_of
from headrace.gateway.budgets.registry import read_budgets
from headrace.gateway.budgets.rules import BudgetRule
from headrace.gateway.limits.registry import read_limits
from headrace.gateway.limits.rules import LimitRule, What
from headrace.gateway.store import Transaction

_MAX_MATCHES = 4096


class _Match(NamedTuple):
    limits: tuple[tuple[LimitRule, str], ...]
    budgets: tuple[tuple[BudgetRule, str], ...]
    has_tasks: bool


class _Known(NamedTuple):
    minute: int
    terms: Terms
    has_tasks: bool


class Rulebook:
    """Limits and budgets, as of the last look. Implements `store.watch.Reader`."""

    def __init__(self) -> None:
        self._limits: list[LimitRule] = []
        self._budgets: list[BudgetRule] = []
        self._matches: dict[tuple[str, str, str], _Match] = {}
        self._terms: dict[tuple[str, str, str], _Known] = {}

    async def load(self, tx: Transaction) -> None:
        """Read everything."""
        self.replace(await read_limits(tx), await read_budgets(tx))

    def replace(self, limits: Iterable[LimitRule], budgets: Iterable[BudgetRule]) -> None:
        """Take new rules."""
        self._limits, self._budgets = list(limits), list(budgets)
        self._matches.clear()
        self._terms.clear()

    def terms(self, tenant: str, key_id: str, model: str, task: str, now_s: float) -> Terms:
        """Return what a request is counted in and charged to. Rules per task apply to callers that name one."""
        kind, minute = (tenant, key_id, model), int(now_s // 60)
        found = self._terms.get(kind)
        if found is not None and found.minute == minute and not (task and found.has_tasks):
            return found.terms
        match = self._match(kind)
        limits = tuple(
            LimitHold(rule, rule.account(member, task))
            for rule, member in match.limits
            if task or rule.what is not What.STEPS
        )
        budgets = tuple(
            BudgetHold(rule, rule.account(member, task, now_s))
            for rule, member in match.budgets
            if task or rule.period != "task"
        )
        terms = terms_of(kind, limits, budgets)
        if not (task and match.has_tasks):
            self._terms[kind] = _Known(minute, terms, match.has_tasks)
        return terms

    def _match(self, kind: tuple[str, str, str]) -> _Match:
        match = self._matches.get(kind)
        if match is None:
            if len(self._matches) >= _MAX_MATCHES:
                self._matches.clear()
                self._terms.clear()
            tenant, key_id, model = kind
            members = _members(tenant, key_id)
            limits = tuple((rule, members[rule.subject]) for rule in self._limits if _fits(rule, members, model))
            budgets = tuple((rule, members[rule.subject]) for rule in self._budgets if _fits(rule, members, model))
            has_tasks = any(rule.what is What.STEPS for rule, _ in limits)
            has_tasks = has_tasks or any(rule.period == "task" for rule, _ in budgets)
            match = self._matches[kind] = _Match(limits, budgets, has_tasks)
        return match


def _members(tenant: str, key_id: str) -> dict[str, str]:
    """Return the subjects that a caller belongs to, and whose account each means."""
    members = {"all": "all"}
    for kind, name in (("tenant", tenant), ("key", key_id)):
        if name:
            members[f"{kind}:{name}"] = members[f"{kind}:*"] = f"{kind}:{name}"
    return members


def _fits(rule: LimitRule | BudgetRule, members: dict[str, str], model: str) -> bool:
    return rule.subject in members and rule.model in ("", model)
