"""Upstreams that misbehave behind limits and budgets: the SDK gets each word once, each answer is paid for once."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from headrace.api import ApiState, Models, RemoteModel, build_app
from headrace.core.clock import MonotonicClock
from headrace.core.gateway_settings import GatewaySettings
from headrace.core.health import HealthState, ServerHealth
from headrace.core.upstream_settings import FailoverSettings
from headrace.gateway import Gateway
from headrace.gateway.budgets.registry import BudgetRegistry
from headrace.gateway.identity import Registry
from headrace.gateway.store import migrate, open_database
from tests.unit.api.asgi import Connection
from tests.unit.gateway.upstream.scripted import (
    DONE,
    QUICK,
    Deed,
    ScriptedServer,
    answer,
    chunk,
    event,
    fleet_of,
    hang_up,
    play,
    silence,
    status,
    stream,
)

PRICE = 1_000  # nano-dollars a token at one dollar a million
UPSTREAM_KEY = "sk-upstream-0123456789abcdef"
QUIET = {"first_byte_s": 0.2, "idle_s": 0.2, "api_key": UPSTREAM_KEY}

BEFORE = [
    pytest.param(silence, id="slow headers"),
    pytest.param(status(429, retry_after="1"), id="429 with Retry-After"),
    pytest.param(status(429), id="429 without"),
    pytest.param(status(401, {"error": {"message": f"bad key {UPSTREAM_KEY}"}}), id="401 that repeats the key"),
    pytest.param(stream(event({"error": {"message": "boom", "code": 500}})), id="500 in a 200"),
    pytest.param(stream(chunk(role="assistant")), id="truncated before a word"),
    pytest.param(status(500), id="500"),
    pytest.param(hang_up, id="connection closed before the head"),
]
AFTER = [
    pytest.param(stream(chunk("Hel"), stall=True), id="stall"),
    pytest.param(stream(chunk("Hel"), event({"error": {"message": "boom", "code": 500}})), id="500 in a 200"),
    pytest.param(stream(chunk("Hel"), chunk("lo")[:30]), id="truncated event"),
    pytest.param(stream(chunk("Hel"), DONE), id="[DONE] without an ending"),
    pytest.param(stream(chunk("Hel"), abort=True), id="broken connection"),
]


class Till:
    """A gateway whose tenants have a key and a hard budget each, before a pool of upstreams."""

    def __init__(self, folder: Path, tenants: tuple[str, ...] = ("acme",), limit_nano: int = 10**9) -> None:
        self.url = f"sqlite:///{folder / 'accounts.db'}"
        self._tenants = tenants
        self._limit_nano = limit_nano
        self.keys: dict[str, str] = {}

    async def open(self, *urls: str, policy: FailoverSettings = QUICK, **upstream: Any) -> openai.AsyncOpenAI:
        database = open_database(self.url)
        await database.open()
        await migrate(database)
        registry = Registry(database)
        for tenant in self._tenants:
            await registry.create_tenant(tenant)
            self.keys[tenant] = self.key = (await registry.create_key(tenant)).text
            await BudgetRegistry(database).set(f"tenant:{tenant}", self._limit_nano, period="month")
        await database.close()
        self.gateway = Gateway(self.url, GatewaySettings(prices={"m": "1/1"}), MonotonicClock())
        await self.gateway.open()
        self.fleet = fleet_of(*urls, policy=policy, price_of=self.gateway.price_of, **QUIET, **upstream)
        model = RemoteModel(name="m", root="upstream:u", upstream=self.fleet.pool("m"), created=7)
        ready: Any = lambda: ServerHealth(state=HealthState.READY)  # noqa: E731
        self.app: Any = build_app(
            ApiState(
                models=Models([model], front=self.gateway.front), clock=MonotonicClock(), version="1",
                max_body_bytes=10**6, gatekeeper=self.gateway.gatekeeper, health=ready, render=lambda: (b"", ""),
                wall_s=lambda: 1000.0,
            )
        )  # fmt: skip
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app))
        return openai.AsyncOpenAI(base_url="http://test/v1", api_key=self.key, http_client=self.http, max_retries=0)

    async def shut(self) -> None:
        """Write all that waits."""
        await self.http.aclose()
        await self.gateway.close()

    async def close(self) -> tuple[list[tuple[str, int, int]], tuple[int, int]]:
        """Return outcome, output tokens and cost of what was settled, and what the budget's account says."""
        await self.shut()
        database = open_database(self.url)
        await database.open()
        rows = await database.fetch("SELECT outcome, output_text, cost_nano FROM settlements ORDER BY settled_ns")
        (spend,) = await database.fetch("SELECT spent_nano, reserved_nano FROM spends")
        assert not await database.fetch("SELECT id FROM reservations WHERE is_open = 1")
        await database.close()
        settled = [(str(row["outcome"]), int(str(row["output_text"])), int(str(row["cost_nano"]))) for row in rows]
        return settled, (int(str(spend["spent_nano"])), int(str(spend["reserved_nano"])))


async def said(client: openai.AsyncOpenAI, into: list[str]) -> None:
    """Read one streamed answer."""
    messages: Any = [{"role": "user", "content": "hi"}]
    async for each in await client.chat.completions.create(model="m", messages=messages, stream=True, max_tokens=9):
        into.extend(choice.delta.content or "" for choice in each.choices)


@pytest.mark.parametrize("deed", BEFORE)
def test_what_fails_before_a_word_costs_nothing_and_the_other_upstreams_answer_is_paid_once(
    deed: Deed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def run() -> None:
        async with ScriptedServer([deed]) as bad, ScriptedServer([answer("Hel", "lo")]) as well:
            till = Till(tmp_path)
            client = await till.open(bad.url, well.url)
            for _ in range(4):  # either may be asked first
                words: list[str] = []
                await said(client, words)
                assert "".join(words) == "Hello"
            settled, account = await till.close()
            assert settled == [("stop", 2, 5 * PRICE)] * 4
            assert account == (4 * 5 * PRICE, 0)
            assert bad.calls
            assert UPSTREAM_KEY not in caplog.text
            assert till.key not in caplog.text

    play(run(), skips_idle=False)


@pytest.mark.parametrize("deed", AFTER)
def test_what_fails_after_a_word_is_told_once_and_paid_as_far_as_it_came(deed: Deed, tmp_path: Path) -> None:
    async def run() -> None:
        async with ScriptedServer([deed]) as bad, ScriptedServer([deed]) as other:
            till = Till(tmp_path)
            client = await till.open(bad.url, other.url)
            words: list[str] = []
            with pytest.raises(openai.APIError):
                await said(client, words)
            assert "".join(words) == "Hel"
            assert len(bad.calls) + len(other.calls) == 1
            ((outcome, num_output, cost_nano),), account = await till.close()
            assert outcome == "error"
            assert num_output == 1
            assert account == (cost_nano, 0)

    play(run(), skips_idle=False)


FAILED = [
    pytest.param(silence, 504, 1, id="slow headers"),
    pytest.param(hang_up, 502, 1, id="connection closed before the head"),
    pytest.param(status(429, retry_after="7"), 429, 0, id="429 with Retry-After"),
    pytest.param(status(429), 429, 0, id="429 without"),
    pytest.param(status(500), 502, 0, id="500"),
    pytest.param(status(401), 502, 0, id="401"),
    pytest.param(stream(event({"error": {"message": "boom", "code": 500}})), 502, 0, id="500 in a 200"),
]
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 9}


def posted(till: Till, **more: Any) -> Connection:
    headers = {"authorization": f"Bearer {till.key}"}
    return Connection(till.app).open("POST", "/v1/chat/completions", {**BODY, **more}, headers)


@pytest.mark.parametrize("wants_stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("deed", "code", "num_uncounted"), FAILED)
def test_where_every_upstream_fails_the_row_says_so_and_costs_nothing(
    deed: Deed, code: int, num_uncounted: int, wants_stream: bool, tmp_path: Path
) -> None:
    async def run() -> None:
        async with ScriptedServer([deed]) as bad:
            till = Till(tmp_path)
            await till.open(bad.url, policy=FailoverSettings(retry_s=0.0), total_s=60.0 if wants_stream else 0.3)
            reply = await posted(till, stream=wants_stream).ended()
            assert reply.status == code
            assert ("retry-after" in reply.headers) == (code == 429)
            assert await till.close() == ([("error", 0, 0)], (0, 0))
            assert till.fleet.status()[0].uncounted == num_uncounted

    play(run(), skips_idle=False)


def test_refused_connections_cost_nothing_and_the_other_upstreams_answer_is_paid_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with ScriptedServer([answer("Hel", "lo")]) as well:
            with socket.socket() as held:  # bound and not listening: nobody else gets the port meanwhile
                held.bind(("127.0.0.1", 0))
                till = Till(tmp_path)
                client = await till.open(f"http://127.0.0.1:{held.getsockname()[1]}/v1", well.url)
                for _ in range(3):
                    words: list[str] = []
                    await said(client, words)
                    assert "".join(words) == "Hello"
            assert await till.close() == ([("stop", 2, 5 * PRICE)] * 3, (3 * 5 * PRICE, 0))
            assert [each.uncounted for each in till.fleet.status()] == [0, 0]

    play(run(), skips_idle=False)


@pytest.mark.parametrize("text", ["", "Hel"], ids=["before a word", "after a word"])
def test_a_caller_that_leaves_pays_for_what_came_and_the_upstreams_bill_is_estimated(text: str, tmp_path: Path) -> None:
    async def run() -> None:
        deed = stream(*([chunk(text)] if text else []), stall=True)
        async with ScriptedServer([deed]) as server:
            till = Till(tmp_path)
            await till.open(server.url)
            call = posted(till)
            if text:
                await call.until(1)
            else:
                await until_called(server)
            await call.leave()
            await server.closed.wait()  # the work there ends too
            ((outcome, num_output, cost_nano),), account = await till.close()
            assert (outcome, num_output) == ("abort", len(text) // 3)
            num_input = 5  # two bytes and a message's frame, at four bytes a token
            assert cost_nano == ((num_input + 1) * PRICE if text else 0)
            assert account == (cost_nano, 0)
            state = till.fleet.status()[0]
            assert (state.uncounted, state.uncounted_unpriced) == (1, 0)
            assert (state.uncounted_input_tokens, state.uncounted_output_tokens) == (1, len(text) // 3)
            assert state.uncounted_nano == (1 + len(text) // 3) * PRICE

    play(run(), skips_idle=False)


async def until_called(server: ScriptedServer) -> None:
    while not server.calls:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "told",
    [
        {"prompt_tokens": -5, "completion_tokens": 2},
        {"prompt_tokens": 3, "completion_tokens": 10**30},
        {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": -(2**40)}},
        {"prompt_tokens": 3, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 2**40}},
    ],
)
def test_counts_that_cannot_be_are_not_charged_by(told: dict[str, Any], tmp_path: Path) -> None:
    async def run() -> None:
        deed = stream(chunk("Hello"), chunk(finish="stop"), event({"choices": [], "usage": told}), DONE)
        async with ScriptedServer([deed]) as server:
            till = Till(tmp_path)
            client = await till.open(server.url)
            words: list[str] = []
            await said(client, words)
            assert "".join(words) == "Hello"
            assert await till.close() == ([("stop", 2, 3 * PRICE)], (3 * PRICE, 0))  # one token in, two out, estimated
            assert till.fleet.status()[0].uncounted == 1

    play(run(), skips_idle=False)


@pytest.mark.parametrize("value", [-1, 2**40, 2**63, 10**30])
def test_a_wish_for_more_tokens_than_accounts_can_hold_is_refused_by_name(value: int, tmp_path: Path) -> None:
    async def run() -> None:
        async with ScriptedServer([answer("Hel", "lo")]) as server:
            till = Till(tmp_path)
            client = await till.open(server.url)
            reply = await posted(till, max_tokens=value).ended()
            assert reply.status == 400
            assert b"16,777,216" in reply.body
            await said(client, [])
            assert await till.close() == ([("stop", 2, 5 * PRICE)], (5 * PRICE, 0))
            assert len(server.calls) == 1

    play(run(), skips_idle=False)
