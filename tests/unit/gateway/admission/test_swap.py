"""The short way through Postgres: one statement a batch, and never an answer on accounts that have moved on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.core.errors import BudgetExceeded, RateLimited
from headrace.gateway.limits import What
from tests.gateway_scene import Scene, play


class Count:
    """Counts how the database is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
        self.swaps = self.transactions = 0
        database: Any = scene.database
        fetch, run = database.fetch, database.run

        async def counted_fetch(*args: Any) -> Any:
            self.swaps += 1
            return await fetch(*args)

        async def counted_run(work: Any) -> Any:
            self.transactions += 1
            return await run(work)

        monkeypatch.setattr(database, "fetch", counted_fetch)
        monkeypatch.setattr(database, "run", counted_run)


async def set_rules(s: Scene) -> None:
    await s.budgets.set("all", 1000, period="total")
    await s.budgets.set("all", 1000, period="rolling:1d")
    await s.limits.set("all", What.TOKENS, 10_000, per="hour")
    await s.limits.set("all", What.PARALLEL, 3)
    await s.load()


def test_accounts_that_nobody_else_touches_cost_one_statement_a_batch(
    fresh_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(s: Scene) -> None:
        await set_rules(s)
        first = await s.gateway.reserve(s.ask(10, 90))  # makes the accounts
        s.settle(first, 10, 40)
        await s.written()
        count = Count(monkeypatch, s)
        for _ in range(4):
            grants = await asyncio.gather(*(s.gateway.reserve(s.ask(10, 20)) for _ in range(3)))
            with pytest.raises(RateLimited):
                await s.gateway.reserve(s.ask(1))
            for grant in grants:
                s.settle(grant, 10, 5)
            await s.written()
        assert (count.swaps, count.transactions) == (12, 0)
        assert await s.accounts() == [(50 + 12 * 15, 0)] * 2
        assert len(await s.rows("SELECT id FROM settlements")) == 13
        assert await s.rows("SELECT id FROM reservations") == []

    play(fresh_postgres, scene)


def test_what_another_gateway_did_meanwhile_is_seen_before_anything_is_granted(
    fresh_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(s: Scene) -> None:
        await set_rules(s)
        other = s.new_gateway()
        mine = await s.gateway.reserve(s.ask(10, 90))
        theirs = await other.reserve(s.ask(0, 850))
        count = Count(monkeypatch, s)
        with pytest.raises(BudgetExceeded):
            await s.gateway.reserve(s.ask(60, 40, least_output=40))  # it last saw 900 left
        s.settle(theirs, 0, 0, gateway=other)
        await s.written(other)
        await s.gateway.reserve(s.ask(0, 900))  # it last saw 50 left
        s.settle(mine, 10, 90)
        await s.written()
        assert await s.accounts() == [(100, 900)] * 2
        assert count.transactions == 0  # each decided anew on what the database told
        assert count.swaps == 6

    play(fresh_postgres, scene)


def test_a_reservation_that_was_released_meanwhile_is_settled_under_locks(
    fresh_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(s: Scene) -> None:
        await set_rules(s)
        grant = await s.gateway.reserve(s.ask(10, 90))
        other = s.new_gateway()
        await s.let_leases_run_out()
        await other.sweep()
        count = Count(monkeypatch, s)
        s.settle(grant, 10, 20)
        await s.written()
        assert (count.swaps, count.transactions) == (1, 1)
        assert await s.accounts() == [(30, 0)] * 2
        (row,) = await s.rows("SELECT outcome, cost_nano FROM settlements")
        assert row == {"outcome": "stop", "cost_nano": 30}

    play(fresh_postgres, scene)
