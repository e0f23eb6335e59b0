"""Upstreams that misbehave behind limits and budgets: the SDK gets each word once, each answer is paid for once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from headrace.api import ApiState, Models, RemoteModel, build_app
from headrace.core.clock import MonotonicClock
from headrace.core.gateway_settings import GatewaySettings
from headrace.core.health import HealthState, ServerHealth
from headrace.gateway import Gateway
from headrace.gateway.budgets.registry import BudgetRegistry
from headrace.gateway.identity import Registry
from headrace.gateway.store import migrate, open_database
from tests.unit.gateway.upstream.scripted import (
    DONE,
    Deed,
    ScriptedServer,
    answer,
    chunk,
    event,
    fleet_of,
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
]
AFTER = [
    pytest.param(stream(chunk("Hel"), stall=True), id="stall"),
    pytest.param(stream(chunk("Hel"), event({"error": {"message": "boom", "code": 500}})), id="500 in a 200"),
    pytest.param(stream(chunk("Hel"), chunk("lo")[:30]), id="truncated event"),
    pytest.param(stream(chunk("Hel"), DONE), id="[DONE] without an ending"),
]


class Till:
    """A gateway with one key and one hard budget, before a pool of upstreams."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'accounts.db'}"

    async def open(self, *urls: str) -> openai.AsyncOpenAI:
        database = open_database(self.url)
        await database.open()
        await migrate(database)
        registry = Registry(database)
        await registry.create_tenant("acme")
        self.key = (await registry.create_key("acme")).text
        await BudgetRegistry(database).set("tenant:acme", 10**9, period="month")
        await database.close()
        self.gateway = Gateway(self.url, GatewaySettings(prices={"m": "1/1"}), MonotonicClock())
        await self.gateway.open()
        model = RemoteModel(name="m", root="upstream:u", upstream=fleet_of(*urls, **QUIET).pool("m"), created=7)
        ready: Any = lambda: ServerHealth(state=HealthState.READY)  # noqa: E731
        app: Any = build_app(
            ApiState(
                models=Models([model], front=self.gateway.front), clock=MonotonicClock(), version="1",
                max_body_bytes=10**6, gatekeeper=self.gateway.gatekeeper, health=ready, render=lambda: (b"", ""),
                wall_s=lambda: 1000.0,
            )
        )  # fmt: skip
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        return openai.AsyncOpenAI(base_url="http://test/v1", api_key=self.key, http_client=self.http, max_retries=0)

    async def close(self) -> tuple[list[tuple[str, int, int]], tuple[int, int]]:
        """Return outcome, output tokens and cost of what was settled, and what the budget's account says."""
        await self.http.aclose()
        await self.gateway.close()
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
