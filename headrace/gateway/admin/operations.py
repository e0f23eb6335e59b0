"""Every operation of the admin API: where it is, what it takes, what it gives, what it does.

Owns the table that both the routes and the OpenAPI document are made from, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from headrace.core.errors import InvalidRequest
from headrace.econ.money import parse_usd
from headrace.gateway.admin import bodies
from headrace.gateway.audit import Journal
from headrace.gateway.audit.reading import Filter, read_rows
from headrace.gateway.budgets import BudgetRule
from headrace.gateway.budgets.registry import BudgetRegistry
from headrace.gateway.identity import Registry, Tenant
from headrace.gateway.identity.records import Key
from headrace.gateway.identity.shown import ShownKey, ShownNewKey, show_issued, show_key
from headrace.gateway.limits import LimitRule
from headrace.gateway.limits.registry import LimitRegistry
from headrace.gateway.store import Database
from headrace.gateway.store.pages import Found, Page

T = TypeVar("T")
BodyT = TypeVar("BodyT", bound=bodies.Body)
Work = Callable[["Registries", str, Any], Awaitable[object]]  # the body is of the operation's own type


class Registries:
    """What operations work on, in the name of one caller."""

    def __init__(self, database: Database, journal: Journal) -> None:
        self.database = database
        self.identity = Registry(database, journal=journal)
        self.limits = LimitRegistry(database, journal)
        self.budgets = BudgetRegistry(database, journal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `path` has at most one place, `{id}`; `body`, `query` None: it takes none."""

    method: str
    path: str
    name: str
    summary: str
    work: Work
    reply: Any
    body: type[bodies.Body] | None = None
    query: type[bodies.Body] | None = None
    status: int = 200


async def _create_tenant(r: Registries, _: str, body: bodies.NewTenant) -> Tenant:
    return await r.identity.create_tenant(body.id, body.name)


async def _list_tenants(r: Registries, _: str, query: bodies.PageQuery) -> bodies.Listing[Tenant]:
    found = await r.identity.tenants_page(_page(query))
    return _listing(found.rows, found.has_more, [tenant.id for tenant in found.rows])


async def _show_tenant(r: Registries, tenant_id: str, body: None) -> Tenant:
    return await r.identity.tenant(tenant_id)


async def _change_tenant(r: Registries, tenant_id: str, body: bodies.TenantChange) -> Tenant:
    return await r.identity.change_tenant(tenant_id, name=body.name, is_disabled=body.disabled)


async def _create_key(r: Registries, tenant_id: str, body: bodies.NewKey) -> ShownNewKey:
    issued = await r.identity.create_key(
        tenant_id, name=body.name, role=body.role, models=body.models, expires_s=body.expires_s
    )
    return show_issued(issued)


async def _list_keys_of_tenant(r: Registries, tenant_id: str, query: bodies.PageQuery) -> bodies.Listing[ShownKey]:
    return _keys(await r.identity.keys_page(_page(query), tenant_id))


async def _list_keys(r: Registries, _: str, query: bodies.PageQuery) -> bodies.Listing[ShownKey]:
    return _keys(await r.identity.keys_page(_page(query)))


async def _show_key(r: Registries, key_id: str, body: None) -> ShownKey:
    return show_key(await r.identity.key(key_id))


async def _change_key(r: Registries, key_id: str, body: bodies.KeyChange) -> ShownKey:
    key = await r.identity.change_key(key_id, name=body.name, models=body.models, expires_s=body.expires_s)
    return show_key(key)


async def _revoke_key(r: Registries, key_id: str, body: None) -> ShownKey:
    return show_key(await r.identity.revoke_key(key_id))


async def _rotate_key(r: Registries, key_id: str, body: bodies.Rotation) -> ShownNewKey:
    return show_issued(await r.identity.rotate_key(key_id, body.grace_s))


async def _set_limit(r: Registries, _: str, body: bodies.LimitChange) -> LimitRule:
    return await r.limits.set(body.subject, body.what, body.amount, per=body.per, model=body.model)


async def _list_limits(r: Registries, _: str, query: bodies.PageQuery) -> bodies.Listing[LimitRule]:
    found = await r.limits.page(_page(query))
    return _listing(found.rows, found.has_more, [rule.id for rule in found.rows])


async def _show_limit(r: Registries, limit_id: str, body: None) -> LimitRule:
    return await r.limits.rule(limit_id)


async def _remove_limit(r: Registries, limit_id: str, body: None) -> LimitRule:
    return await r.limits.remove(limit_id)


async def _set_budget(r: Registries, _: str, body: bodies.BudgetChange) -> bodies.BudgetShown:
    rule = await r.budgets.set(
        body.subject,
        _nano("limit_usd", body.limit_usd),
        period=body.period,
        model=body.model,
        is_hard=body.hard,
        soft_nano=None if body.warn_at_usd is None else _nano("warn_at_usd", body.warn_at_usd),
        timezone=body.timezone,
    )
    return await _shown(r, rule)


async def _list_budgets(r: Registries, _: str, query: bodies.PageQuery) -> bodies.Listing[bodies.BudgetShown]:
    found = await r.budgets.page(_page(query))
    shown = [await _shown(r, rule) for rule in found.rows]
    return _listing(shown, found.has_more, [rule.id for rule in found.rows])


async def _show_budget(r: Registries, budget_id: str, body: None) -> bodies.BudgetShown:
    return await _shown(r, await r.budgets.rule(budget_id))


async def _reset_budget(r: Registries, budget_id: str, body: None) -> bodies.BudgetShown:
    return await _shown(r, await r.budgets.reset(budget_id))


async def _remove_budget(r: Registries, budget_id: str, body: None) -> bodies.BudgetShown:
    return bodies.show_budget(await r.budgets.remove(budget_id), [])


async def _read_audit(r: Registries, _: str, query: bodies.AuditQuery) -> bodies.AuditPage:
    wanted = Filter(
        since_ns=query.since_s * 10**9,
        until_ns=query.until_s * 10**9,
        tenant=query.tenant,
        key_id=query.key,
        request_id=query.request,
        model=query.model,
        kind=query.kind,
        decision=query.decision,
        reason=query.reason,
    )
    found = await read_rows(r.database, wanted, after=query.after, limit=query.limit)
    return bodies.AuditPage(
        data=[
            bodies.AuditEntry(row=each.row, digest=each.digest, has_content=each.content is not None) for each in found
        ],
        after=found[-1].row.seq if len(found) == query.limit else None,
    )


async def _shown(r: Registries, rule: BudgetRule) -> bodies.BudgetShown:
    return bodies.show_budget(rule, await r.budgets.accounts(rule.id))


def _page(query: bodies.PageQuery) -> Page:
    if not query.after.isprintable():
        raise InvalidRequest("'after' is no id; give the last_id of the page before", param="after")
    return Page(query.after, query.limit)


def _keys(found: Found[Key]) -> bodies.Listing[ShownKey]:
    return _listing([show_key(key) for key in found.rows], found.has_more, [key.id for key in found.rows])


def _listing(data: list[T], has_more: bool, ids: list[str]) -> bodies.Listing[T]:
    return bodies.Listing(data=data, has_more=has_more, last_id=ids[-1] if ids else None)


def _nano(name: str, text: str) -> int:
    try:
        return parse_usd(text)
    except ValueError as err:
        raise InvalidRequest(f"{name}: {err}", param=name) from err


def _operation(method: str, path: str, summary: str, work: Any, reply: Any, **more: Any) -> Operation:
    name = work.__name__.removeprefix("_")
    if name.startswith("list_"):
        more["query"] = bodies.PageQuery
    return Operation(method=method, path=path, name=name, summary=summary, work=work, reply=reply, **more)


OPERATIONS: tuple[Operation, ...] = (
    _operation("GET", "/tenants", "List tenants", _list_tenants, bodies.Listing[Tenant]),
    _operation("POST", "/tenants", "Add a tenant", _create_tenant, Tenant, body=bodies.NewTenant, status=201),
    _operation("GET", "/tenants/{id}", "Show a tenant", _show_tenant, Tenant),
    _operation("PATCH", "/tenants/{id}", "Change a tenant", _change_tenant, Tenant, body=bodies.TenantChange),
    _operation(
        "GET", "/tenants/{id}/keys", "List a tenant's keys", _list_keys_of_tenant, bodies.Listing[ShownKey]
    ),
    _operation(
        "POST", "/tenants/{id}/keys", "Make a key; its secret is shown this once", _create_key, ShownNewKey,
        body=bodies.NewKey, status=201,
    ),
    _operation("GET", "/keys", "List keys", _list_keys, bodies.Listing[ShownKey]),
    _operation("GET", "/keys/{id}", "Show a key", _show_key, ShownKey),
    _operation("PATCH", "/keys/{id}", "Change a key", _change_key, ShownKey, body=bodies.KeyChange),
    _operation("DELETE", "/keys/{id}", "Revoke a key for good", _revoke_key, ShownKey),
    _operation(
        "POST", "/keys/{id}/rotate", "Give a key a new secret, shown this once", _rotate_key, ShownNewKey,
        body=bodies.Rotation,
    ),
    _operation("GET", "/limits", "List limits", _list_limits, bodies.Listing[LimitRule]),
    _operation("POST", "/limits", "Add or change a limit", _set_limit, LimitRule, body=bodies.LimitChange),
    _operation("GET", "/limits/{id}", "Show a limit", _show_limit, LimitRule),
    _operation("DELETE", "/limits/{id}", "Remove a limit", _remove_limit, LimitRule),
    _operation("GET", "/budgets", "List budgets", _list_budgets, bodies.Listing[bodies.BudgetShown]),
    _operation(
        "POST", "/budgets", "Add or change a budget", _set_budget, bodies.BudgetShown, body=bodies.BudgetChange
    ),
    _operation("GET", "/budgets/{id}", "Show a budget", _show_budget, bodies.BudgetShown),
    _operation("POST", "/budgets/{id}/reset", "Begin anew: nothing is spent", _reset_budget, bodies.BudgetShown),
    _operation("DELETE", "/budgets/{id}", "Remove a budget", _remove_budget, bodies.BudgetShown),
    _operation(
        "GET", "/audit", "Read the audit log, also with a key of the role auditor", _read_audit, bodies.AuditPage,
        query=bodies.AuditQuery,
    ),
)  # fmt: skip


def encode(reply: object) -> bytes:
    """Spell a reply."""
    return msgspec.json.encode(reply)
