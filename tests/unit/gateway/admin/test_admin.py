"""The admin API: what it documents is what it does, whatever is sent to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.api import ApiState, Models, build_app
from headrace.core.gateway_settings import GatewaySettings
from headrace.gateway import Gateway
from headrace.gateway.admin.openapi import PREFIX, document
from headrace.gateway.admin.operations import OPERATIONS
from headrace.gateway.identity import Registry, Role
from headrace.gateway.store import migrate, open_database
from headrace.testing import VirtualClock
from tests.postgres import new_schema


class Admin:
    """One server's administration, called in process with an admin's key."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.keys = self.run(self._make_keys(url))
        clock: Any = VirtualClock()
        self.gateway = Gateway(url, GatewaySettings(), clock)
        self.run(self.gateway.look())
        state: dict[str, Any] = {"health": None, "render": None, "wall_s": lambda: 0.0}
        self.app = build_app(
            ApiState(
                models=Models(), clock=clock, version="1", max_body_bytes=10**6, gatekeeper=self.gateway.gatekeeper,
                admin=self.gateway.admin_routes("1"), **state,
            )
        )  # fmt: skip

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def _make_keys(self, url: str) -> dict[Role, str]:
        database = open_database(url)
        await database.open()
        await migrate(database)
        registry = Registry(database)
        await registry.create_tenant("ops")
        keys = {role: (await registry.create_key("ops", role=role)).text for role in Role}
        await database.close()
        return keys

    def call(self, method: str, path: str, body: Any = None, *, role: Role = Role.ADMIN, **kw: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                headers = {"authorization": f"Bearer {self.keys[role]}"}
                return await client.request(method, PREFIX + path, json=body, headers=headers, **kw)

        found: httpx.Response = self.run(send())
        return found

    def close(self) -> None:
        self.run(self.gateway.close())
        self.loop.close()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def admin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    if request.param == "sqlite":
        made = Admin(f"sqlite:///{tmp_path_factory.mktemp('admin') / 'a.db'}")
    else:
        made = Admin(new_schema(request.getfixturevalue("postgres_url")))
    yield made
    made.close()


def test_tenants_and_keys_live_their_lives(admin: Admin) -> None:
    assert admin.call("POST", "/tenants", {"id": "acme", "name": "Acme"}).status_code == 201
    again = admin.call("POST", "/tenants", {"id": "acme"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
    made = admin.call("POST", "/tenants/acme/keys", {"name": "ci", "models": ["m"]})
    assert made.status_code == 201
    key = made.json()
    assert key["key"].startswith(f"hr-{key['id']}-")
    listed = admin.call("GET", "/tenants/acme/keys").json()["data"]
    assert [(one["id"], one["name"], one["models"]) for one in listed] == [(key["id"], "ci", ["m"])]
    assert "digest" not in json.dumps(listed)
    rotated = admin.call("POST", f"/keys/{key['id']}/rotate", {"grace_s": 60}).json()
    assert rotated["key"] != key["key"]
    assert rotated["previous_until_s"] is not None
    changed = admin.call("PATCH", f"/keys/{key['id']}", {"models": None}).json()
    assert (changed["name"], changed["models"]) == ("ci", None)
    assert admin.call("DELETE", f"/keys/{key['id']}").json()["revoked_s"] is not None
    assert admin.call("PATCH", "/tenants/acme", {"disabled": True}).json()["disabled_s"] is not None


def test_limits_and_budgets_live_theirs(admin: Admin) -> None:
    limit = {"subject": "tenant:ops", "what": "requests", "amount": 5, "per": "minute"}
    first = admin.call("POST", "/limits", limit).json()
    second = admin.call("POST", "/limits", {**limit, "amount": 6}).json()
    assert (first["id"], second["amount"]) == (second["id"], 6)
    assert admin.call("DELETE", f"/limits/{first['id']}").json() == second
    assert admin.call("GET", f"/limits/{first['id']}").status_code == 404
    budget = {"subject": "all", "limit_usd": "12.5", "warn_at_usd": "10", "period": "rolling:30d"}
    shown = admin.call("POST", "/budgets", budget).json()
    assert (shown["limit_usd"], shown["warn_at_usd"], shown["period"]) == ("12.50", "10.00", "rolling:2592000")
    assert shown in admin.call("GET", "/budgets").json()["data"]
    assert admin.call("POST", f"/budgets/{shown['id']}/reset").json()["accounts"] == []
    assert admin.call("DELETE", f"/budgets/{shown['id']}").status_code == 200


def test_lists_come_in_pages_that_do_not_move(admin: Admin) -> None:
    made = [f"page-{number:02}" for number in range(7)]
    for tenant in made:
        admin.call("POST", "/tenants", {"id": tenant})
        admin.call("POST", f"/tenants/{tenant}/keys", {})
        limit = {"subject": f"tenant:{tenant}", "what": "parallel", "amount": 1}
        admin.call("POST", "/limits", limit)
        admin.call("POST", "/budgets", {"subject": f"tenant:{tenant}", "limit_usd": "1"})
    for path in ("/tenants", "/keys", "/limits", "/budgets"):
        everything = admin.call("GET", f"{path}?limit=1000").json()
        assert everything["has_more"] is False
        seen, after = [], ""
        while True:
            page = admin.call("GET", path, params={"limit": 3, "after": after}).json()
            assert len(page["data"]) <= 3
            seen += [one["id"] for one in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
            assert after == seen[-1]
        assert seen == [one["id"] for one in everything["data"]]
        assert len(set(seen)) == len(seen) >= 7
    first = admin.call("GET", "/tenants?limit=1&after=page-02").json()
    assert [one["id"] for one in first["data"]] == ["page-03"]
    (key,) = admin.call("GET", "/tenants/page-05/keys").json()["data"]
    assert admin.call("GET", f"/tenants/page-05/keys?after={key['id']}").json() == {
        "data": [],
        "has_more": False,
        "last_id": None,
    }


@pytest.mark.parametrize("asked", ["limit=0", "limit=1001", "limit=x", "after=%00", "page=2"])
def test_a_page_that_cannot_be_is_named(admin: Admin, asked: str) -> None:
    response = admin.call("GET", f"/tenants?{asked}")
    assert response.status_code == 400
    assert asked.split("=")[0] in response.json()["error"]["message"]


def test_only_admins_get_in(admin: Admin) -> None:
    for role in (Role.USER, Role.MONITOR):
        assert admin.call("GET", "/tenants", role=role).status_code == 403
        assert admin.call("GET", "/openapi.json", role=role).status_code == 403


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/tenants", {"id": "a", "nmae": "x"}, "did you mean 'name'?"),
        ("/tenants", {}, "missing required field `id`"),
        ("/tenants", {"id": "UPPER"}, "$.id"),
        ("/tenants/acme/keys", {"role": "boss"}, "role is 'boss'; it must be one of user, monitor, auditor, admin"),
        ("/limits", {"subject": "all", "what": "x", "amount": 1}, "one of requests, tokens, parallel, steps"),
        ("/limits", {"subject": "all", "what": "tokens", "amount": 1, "per": "year"}, "one of day, hour, minute, task"),
        ("/limits", {"subject": "planet:x", "what": "tokens", "amount": 1, "per": "day"}, "tenant:ID"),
        ("/limits", {"subject": "all", "what": "tokens", "amount": 1}, "'minute' or 'hour' or 'day'"),
        ("/limits", {"subject": "all", "what": "requests", "amount": 0, "per": "day"}, "between 1 and"),
        ("/budgets", {"subject": "all", "limit_usd": "much"}, "limit_usd: 'much'"),
        ("/budgets", {"subject": "all", "limit_usd": "1", "warn_at_usd": "2"}, "soft mark"),
        ("/budgets", {"subject": "all", "limit_usd": "1", "timezone": "Mars"}, "Europe/London"),
    ],
)
def test_what_does_not_fit_is_named(admin: Admin, path: str, body: Any, said: str) -> None:
    response = admin.call("POST", path, body)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


def test_the_document_is_served_and_names_every_operation(admin: Admin) -> None:
    served = admin.call("GET", "/openapi.json").json()
    assert served == json.loads(json.dumps(document("1")))
    assert sum(len(methods) for methods in served["paths"].values()) == len(OPERATIONS)
    assert len({o.name for o in OPERATIONS}) == len(OPERATIONS)


def test_every_change_is_logged_without_its_secret(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="headrace")
    key = admin.call("POST", "/tenants/ops/keys", {}).json()
    assert "admin: create_key of 'ops' by key" in caplog.text
    assert key["key"].rpartition("-")[2] not in caplog.text


scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=20)
json_values = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, str, Any]:
    """An operation, an id, a body that is nearly right: known fields with likely and unlikely values."""
    operation = draw(st.sampled_from(OPERATIONS))
    target = draw(
        st.sampled_from(["ops", "acme", "nokey"])
        | st.text(st.characters(codec="utf-8"), min_size=1, max_size=9).filter(
            lambda text: text.strip(".") and "/" not in text
        )
    )
    if operation.body is None:
        return operation, target, None
    likely = st.sampled_from(
        ["all", "tenant:*", "tenant:ops", "day", "minute", "month", "requests", "tokens", "user", "admin", "1.5", "UTC",
         1, 0, True, None, ["m"], "rolling:1h", "total"]
    )  # fmt: skip
    fields = st.sampled_from([*operation.body.__struct_fields__, "extra"])
    return operation, target, draw(st.dictionaries(fields, likely | json_values, max_size=7) | json_values)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(call=calls())
def test_whatever_is_sent_the_answer_is_a_documented_one(admin: Admin, call: tuple[Any, str, Any]) -> None:
    operation, target, body = call
    response = admin.call(operation.method, operation.path.replace("{id}", quote(target, safe="")), body)
    if response.status_code == operation.status:
        msgspec.convert(response.json(), operation.reply)
    else:
        assert response.status_code in (400, 404, 405, 409), response.text
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text


def test_a_body_that_is_too_large_is_refused(admin: Admin, tmp_path: Path) -> None:
    response = admin.call("POST", "/tenants", {"id": "x", "name": "n" * 300_000})
    assert response.status_code == 413
