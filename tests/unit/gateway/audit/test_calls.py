"""What calls leave in the log: a whole gateway, called over HTTP in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.api import ApiState, Models, ServedModel, build_app
from headrace.core.audit import AuditEvent
from headrace.core.audit_settings import AuditSettings
from headrace.core.delta import Delta, FinishReason
from headrace.core.errors import Overloaded
from headrace.core.gateway_settings import GatewaySettings
from headrace.core.health import HealthState, ServerHealth
from headrace.gateway import Gateway
from headrace.gateway.audit.chain import AuditRow
from headrace.gateway.audit.content import open_content
from headrace.gateway.audit.keys import KeyRing, draw
from headrace.gateway.audit.reading import Filter, Found, read_rows
from headrace.gateway.audit.verify import verify
from headrace.gateway.budgets.registry import BudgetRegistry
from headrace.gateway.identity import Registry, Role
from headrace.gateway.limits import What
from headrace.gateway.limits.registry import LimitRegistry
from headrace.gateway.store import Database, migrate, open_database
from headrace.testing import ByteTokenizer, EchoUpstream, VirtualClock

KEY = draw()


class Moods:
    """Answers as an echo does, but for prompts that ask for something else."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._echo = EchoUpstream(tokenizer)

    async def generate(self, request: Any) -> Any:
        prompt = self._tokenizer.decode(list(request.prompt), skip_special=True)
        if "busy" in prompt:
            raise Overloaded("the queue is full", retry_after_s=1.0)
        if "remote" in prompt:
            yield Delta(headers=(("x-headrace-upstream", "east"),))
        if "fail" in prompt:
            yield Delta(text="half")
            yield Delta(finish=FinishReason.ERROR, error="it broke")
            return
        async for delta in self._echo.generate(request):
            yield delta


class House:
    """One server with tenants, and its database."""

    def __init__(self, url: str, **audit: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.url = url
        self.keys = self.run(self._with_database(self._prepare))
        clock: Any = VirtualClock()
        settings = GatewaySettings(prices={"echo": "1/1"})
        self.gateway = Gateway(url, settings, clock, AuditSettings(**audit), read_secret=lambda place: KEY)
        self.run(self.gateway.open())
        tokenizer: Any = ByteTokenizer()
        model = ServedModel(
            name="echo", root="file:echo", upstream=Moods(tokenizer), tokenizer=tokenizer, template=None,
            max_context=4096, created=7,
        )  # fmt: skip
        health = ServerHealth(state=HealthState.READY)
        state: dict[str, Any] = {
            "health": lambda: health,
            "render": lambda: (b"", "text/plain"),
        }
        self.app = build_app(
            ApiState(
                models=Models([model], front=self.gateway.front), clock=clock, version="1", max_body_bytes=10**6,
                gatekeeper=self.gateway.gatekeeper, admin=self.gateway.admin_routes("1"),
                auditor=self.gateway.auditor, wall_s=lambda: 1000.0, **state,
            )
        )  # fmt: skip

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def _with_database(self, work: Any) -> Any:
        database = open_database(self.url)
        await database.open()
        try:
            await migrate(database)
            return await work(database)
        finally:
            await database.close()

    async def _prepare(self, database: Database) -> dict[str, str]:
        registry = Registry(database)
        await registry.create_tenant("acme")
        keys = {role.value: (await registry.create_key("acme", role=role)).text for role in Role}
        keys["narrow"] = (await registry.create_key("acme", models=["other"])).text
        keys["poor"] = (await registry.create_key("acme")).text
        keys["slow"] = (await registry.create_key("acme")).text
        await BudgetRegistry(database).set(f"key:{keys['poor'].split('-')[1]}", 1)
        await LimitRegistry(database).set(f"key:{keys['slow'].split('-')[1]}", What.TOKENS, 1, per="hour")
        return keys

    def call(self, method: str, path: str, key: str = "user", **kwargs: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                secret = self.keys.get(key, key)
                headers = {"authorization": f"Bearer {secret}", **kwargs.pop("headers", {})}
                return await client.request(method, path, headers=headers, **kwargs)

        reply: httpx.Response = self.run(send())
        return reply

    def ask(self, prompt: str = "hello", key: str = "user", **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", {})
        body = {"model": "echo", "prompt": prompt, "max_tokens": 5, **fields}
        return self.call("POST", "/v1/completions", key, json=body, headers=headers)

    def found(self, **wanted: str) -> list[Found]:
        writer: Any = self.gateway.auditor
        self.run(writer.flush())
        rows: list[Found] = self.run(self._with_database(lambda db: read_rows(db, Filter(**wanted))))
        return rows

    def last(self) -> AuditRow:
        return self.found()[-1].row

    def close(self) -> None:
        self.run(self.gateway.close())
        self.loop.close()


MakeHouse = Callable[..., House]


@pytest.fixture
def make_house(tmp_path: Path) -> Iterator[MakeHouse]:
    made: list[House] = []

    def make(url: str | None = None, **audit: Any) -> House:
        made.append(House(url or f"sqlite:///{tmp_path / 'a.db'}", **audit))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def house(make_house: MakeHouse) -> House:
    return make_house()


def test_an_answered_call_leaves_who_what_and_how_much(url: str, make_house: MakeHouse) -> None:
    house = make_house(url)
    reply = house.ask(headers={"x-task-id": "job-7", "x-request-id": "req-1"})
    assert reply.status_code == 200
    row = house.last()
    key_id = house.keys["user"].split("-")[1]
    assert (row.tenant, row.key_id, row.role, row.task) == ("acme", key_id, "user", "job-7")
    assert (row.request_id, row.method, row.path, row.model) == ("req-1", "POST", "/v1/completions", "echo")
    assert (row.decision, row.status, row.finish, row.requests) == ("allowed", 200, "length", 1)
    usage = reply.json()["usage"]
    assert (row.input_tokens, row.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert row.cost_nano == 1000 * usage["total_tokens"]
    assert row.at_ns == 1000 * 10**9


def test_a_refused_call_leaves_the_reason(house: House) -> None:
    house.ask(key="slow")
    asked: list[tuple[dict[str, Any], tuple[str, str, str, int]]] = [
        ({"key": "wrong"}, ("refused", "auth", "invalid_api_key", 401)),
        ({"key": "monitor"}, ("refused", "permission", "forbidden", 403)),
        ({"key": "narrow"}, ("refused", "model", "forbidden", 403)),
        ({"model": "nothing"}, ("refused", "model", "model_not_found", 404)),
        ({"key": "poor"}, ("refused", "budget", "budget_exceeded", 402)),
        ({"key": "slow"}, ("refused", "limit", "rate_limit_exceeded", 429)),
        ({"prompt": "busy"}, ("refused", "overload", "overloaded", 429)),
        ({"prompt": "fail"}, ("failed", "failure", "request_failed", 500)),
        ({"temprature": 1}, ("refused", "request", "unknown_parameter", 400)),
    ]
    for fields, told in asked:
        house.ask(**fields)
        row = house.last()
        assert (row.decision, row.reason, row.code, row.status) == told


def test_a_refused_key_is_named_by_its_public_part_alone(house: House) -> None:
    text = house.keys["user"]
    house.ask(key=text[:-1] + ("a" if text[-1] != "a" else "b"))
    (found,) = house.found(reason="auth")
    assert (found.row.key_id, found.row.tenant) == (text.split("-")[1], "")


def test_streams_and_several_prompts_are_one_row_each(house: House) -> None:
    house.ask(stream=True)
    house.ask(["one", "three"], n=2)
    first, second = [found.row for found in house.found(kind="call")]
    assert (first.finish, first.requests, first.status) == ("length", 1, 200)
    assert (len(second.finish.split(",")), second.requests) == (4, 2)


def test_the_upstream_that_answered_is_named(house: House) -> None:
    reply = house.ask("remote")
    assert reply.headers["x-headrace-upstream"] == house.last().upstream == "east"


def test_a_replayed_answer_is_a_call_of_its_own_that_costs_nothing(house: House) -> None:
    headers = {"idempotency-key": "k1"}
    house.ask(headers=headers)
    house.ask(headers=headers)
    first, second = sorted((found.row for found in house.found(kind="call")), key=lambda row: -row.requests)
    assert (first.requests, first.cost_nano is not None) == (1, True)
    assert (second.requests, second.cost_nano, second.status) == (0, None, 200)


def test_a_change_is_written_with_what_was_there_before(house: House) -> None:
    house.call("POST", "/admin/v1/tenants", "admin", json={"id": "new", "name": "New"})
    house.call("PATCH", "/admin/v1/tenants/new", "admin", json={"name": "Newer"})
    made, changed = [found.row for found in house.found(kind="change")]
    assert (made.action, made.target, made.role) == ("tenant.create", "new", "admin")
    assert made.detail["after"]["name"] == "New"  # type: ignore[index]
    assert changed.detail["before"]["name"] == "New"  # type: ignore[index]
    assert changed.detail["after"]["name"] == "Newer"  # type: ignore[index]
    calls = [found.row.request_id for found in house.found(kind="call")]
    assert [made.request_id, changed.request_id] == calls


def test_no_change_takes_place_that_is_not_written(house: House) -> None:
    house.call("POST", "/admin/v1/limits", "admin", json={"subject": "all", "what": "parallel", "amount": 9})
    (limit,) = [one for one in house.call("GET", "/admin/v1/limits", "admin").json()["data"] if one["subject"] == "all"]
    assert house.call("DELETE", f"/admin/v1/limits/{limit['id']}", "admin").status_code == 200
    budget = house.call("POST", "/admin/v1/budgets", "admin", json={"subject": "all", "limit_usd": "1"}).json()
    house.call("POST", f"/admin/v1/budgets/{budget['id']}/reset", "admin")
    house.call("DELETE", f"/admin/v1/budgets/{budget['id']}", "admin")
    key = house.call("POST", "/admin/v1/tenants/acme/keys", "admin", json={}).json()
    house.call("POST", f"/admin/v1/keys/{key['id']}/rotate", "admin", json={"grace_s": 60})
    house.call("PATCH", f"/admin/v1/keys/{key['id']}", "admin", json={"name": "n"})
    house.call("DELETE", f"/admin/v1/keys/{key['id']}", "admin")
    assert [found.row.action for found in house.found(kind="change")] == [
        *("limit.set", "limit.remove", "budget.set", "budget.reset", "budget.remove"),
        *("key.create", "key.rotate", "key.change", "key.revoke"),
    ]


def test_the_log_is_read_over_http_by_admins_and_auditors_alone(house: House) -> None:
    for _ in range(3):
        house.ask()
    house.found()
    page = house.call("GET", "/admin/v1/audit?limit=2&decision=allowed", "auditor").json()
    assert [entry["row"]["seq"] for entry in page["data"]] == [1, 2]
    rest = house.call("GET", f"/admin/v1/audit?after={page['after']}", "admin").json()
    assert (rest["data"][0]["row"]["seq"], rest["after"]) == (3, None)
    assert house.call("GET", "/admin/v1/audit?since_s=4000000000", "auditor").json()["data"] == []
    for key, path in (("user", "/audit"), ("monitor", "/audit"), ("auditor", "/tenants")):
        assert house.call("GET", f"/admin/v1{path}", key).status_code == 403
    assert house.ask(key="auditor").status_code == 403
    wrong = house.call("GET", "/admin/v1/audit?limits=2", "auditor")
    assert (wrong.status_code, "did you mean 'limit'" in wrong.text) == (400, True)
    assert house.call("GET", "/admin/v1/audit?limit=0", "auditor").status_code == 400


def test_no_secret_and_no_content_is_in_the_log(house: House) -> None:
    house.ask("the moon is made of cheese")
    house.call("GET", f"/v1/models/{house.keys['user']}")
    house.call("POST", "/admin/v1/tenants/acme/keys", "admin", json={})

    async def dump(database: Database) -> str:
        async with database.transaction(writes=False) as tx:
            return str(await tx.fetch("SELECT * FROM audit_rows"))

    house.found()
    text = house.run(house._with_database(dump))
    assert "cheese" not in text
    assert not [secret for secret in house.keys.values() if secret.rpartition("-")[2] in text]


def test_content_is_kept_if_configured_sealed_and_up_to_its_limit(make_house: MakeHouse) -> None:
    house = make_house(content="full", key="env:K", max_content_bytes=100)
    house.ask("the moon", max_tokens=20)
    house.ask("x" * 200, stream=True, max_tokens=200)
    keys = KeyRing.read("env:K", (), lambda place: KEY)
    first, second = house.found(kind="call")
    assert first.content is not None
    assert second.content is not None
    said = open_content(first.content, keys)
    assert ("the moon" in said.request, "the moon" in said.answer, said.is_cut) == (True, True, False)
    cut = open_content(second.content, keys)
    assert (len(cut.request), len(cut.answer), cut.is_cut) == (100, 100, True)
    verdict = house.run(house._with_database(lambda database: verify(database, keys)))
    assert (verdict.problem, verdict.keyed_from) == (None, 1)


def test_calls_go_unrecorded_if_so_configured(make_house: MakeHouse) -> None:
    house = make_house(record="changes")
    house.ask()
    house.call("POST", "/admin/v1/tenants", "admin", json={"id": "new"})
    assert [found.row.kind for found in house.found()] == ["change", "call"]


def test_without_a_log_nothing_is_written_at_all(tmp_path: Path) -> None:
    house = House(f"sqlite:///{tmp_path / 'a.db'}", record="none")
    assert house.gateway.auditor is None
    house.ask()
    house.call("POST", "/admin/v1/tenants", "admin", json={"id": "new"})
    rows = house.run(house._with_database(lambda database: read_rows(database, Filter())))
    assert rows == []
    house.close()


def test_a_full_log_refuses_calls_at_the_door_but_not_health(make_house: MakeHouse) -> None:
    house = make_house(on_failure="refuse", max_buffered=1)
    writer: Any = house.gateway.auditor

    async def fill() -> None:
        writer.record(AuditEvent(at_ns=1))

    house.run(fill())
    reply = house.ask()
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
    assert reply.headers["retry-after"] == "2"
    assert house.call("GET", "/health/live").status_code == 200
    house.found()
    assert house.ask().status_code == 200
