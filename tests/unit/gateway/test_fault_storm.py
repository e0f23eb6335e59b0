"""A storm of faults before two tenants: each reservation ends once, no word is lost or told twice, no budget passed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from headrace.core.upstream_settings import FailoverSettings
from headrace.gateway.store import open_database
from tests.unit.api.asgi import Connection
from tests.unit.gateway.test_chaos_and_money import AFTER, BEFORE, BODY, PRICE, Till
from tests.unit.gateway.upstream.scripted import Deed, ScriptedServer, answer, play, status

NUM_REQUESTS = 90
AT_ONCE = 6
LIMIT_NANO = 180 * PRICE  # of each tenant: some thirty answers and what is set aside for a few more
# Breakers stay closed and no key has to rest, so that every request meets faults.
POLICY = FailoverSettings(retry_s=1.0, backoff_s=0.01, retry_ratio=1.0, breaker_min_calls=10_000)


def deeds(random: Random) -> list[Deed]:
    resting = ("401", "429")
    faults: list[Any] = [param.values[0] for param in (*BEFORE, *AFTER) if not str(param.id).startswith(resting)]
    faults.append(status(429, retry_after="0"))
    return [random.choice(faults) if random.random() < 0.6 else answer("Hel", "lo") for _ in range(400)]


async def ask(till: Till, tenant: str, name: str, leaves_after: int | None) -> tuple[str, str]:
    """Make a call; return how it went and what text came."""
    headers = {"authorization": f"Bearer {till.keys[tenant]}", "x-request-id": name}
    call = Connection(till.app).open("POST", "/v1/chat/completions", BODY, headers)
    if leaves_after is not None:
        await call.until(leaves_after)
        await call.leave()
    else:
        await call.ended()
    if call.status not in (0, 200):
        return str(call.status), ""
    told = [json.loads(data) for _, data in call.events if data != "[DONE]"]
    text = "".join(choice["delta"].get("content", "") for each in told for choice in each.get("choices", ()))
    if leaves_after is not None:
        return "left", text
    assert any("error" in each for each in told) != (call.events[-1][1] == "[DONE]")
    return ("stop" if call.events[-1][1] == "[DONE]" else "error"), text


@pytest.mark.parametrize("seed", [1, 2])
def test_in_a_storm_of_faults_every_reservation_ends_once_and_every_word_is_told_once(
    seed: int, tmp_path: Path
) -> None:
    async def run() -> None:
        random = Random(seed)
        till = Till(tmp_path, ("acme", "other"), LIMIT_NANO)
        async with (
            ScriptedServer(deeds(random)) as one,
            ScriptedServer(deeds(random)) as two,
            ScriptedServer(deeds(random)) as three,
        ):
            await till.open(one.url, two.url, three.url, policy=POLICY, max_parallel=100)
            ended: dict[str, tuple[str, str]] = {}
            gate = asyncio.Semaphore(AT_ONCE)

            async def one_call(number: int) -> None:
                leaves = 1 if number % 5 == 3 else None
                async with gate:
                    ended[f"r{number}"] = await ask(till, ("acme", "other")[number % 2], f"r{number}", leaves)

            await asyncio.gather(*(one_call(number) for number in range(NUM_REQUESTS)))
            await till.shut()
        await check(till, ended)

    play(run(), skips_idle=False)


async def check(till: Till, ended: dict[str, tuple[str, str]]) -> None:
    database = open_database(till.url)
    await database.open()
    rows: list[Any] = await database.fetch("SELECT * FROM settlements")
    spends: list[Any] = await database.fetch("SELECT id, spent_nano, reserved_nano FROM spends")
    still_open = await database.fetch("SELECT id FROM reservations WHERE is_open = 1")
    await database.close()
    by_name = {row["request_id"].removeprefix("chatcmpl-"): row for row in rows}
    admitted = {name for name, (how, _) in ended.items() if how != "402"}
    assert len(by_name) == len(rows)  # one row each
    assert by_name.keys() == admitted
    for name in admitted:
        how, text = ended[name]
        row = by_name[name]
        if how == "stop":
            assert (text, row["outcome"], row["cost_nano"]) == ("Hello", "stop", 5 * PRICE)
        elif how == "error":
            assert row["outcome"] == "error"
            assert text in ("Hel", "Hello")  # a machine that stands still may cut an answer off before its ending
        elif how == "left":
            assert text in ("Hel", "Hello")
            assert row["outcome"] in ("abort", "stop", "error")
        else:
            assert (text, row["outcome"], row["cost_nano"]) == ("", "error", 0)
    assert not still_open
    for spend in spends:
        tenant = "acme" if "tenant:acme" in spend["id"] else "other"
        assert spend["reserved_nano"] == 0
        assert spend["spent_nano"] == sum(row["cost_nano"] for row in rows if row["tenant"] == tenant) <= LIMIT_NANO
    seen = Counter(how for how, _ in ended.values())
    assert {"stop", "error", "left", "402"} <= seen.keys(), seen  # the storm was one
