"""Limits and budgets, decided together by the database: on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from headrace.core.errors import BudgetExceeded, RateLimited, StoreUnavailable, TaskExhausted
from headrace.gateway.admission.asks import Ask
from headrace.gateway.limits import What
from tests.gateway_scene import Scene, play


async def outcome(scene: Scene, ask: Ask, gateway: Any = None) -> str:
    """`ok`, or the code of the refusal."""
    try:
        await (gateway or scene.gateway).reserve(ask)
    except (BudgetExceeded, RateLimited, TaskExhausted, StoreUnavailable) as refusal:
        return refusal.code
    return "ok"


async def late(s: Scene, num: int) -> None:
    """Wait until so many settlements wait for the database."""
    async with asyncio.timeout(60):
        while s.gateway.stats().late != num:
            await asyncio.sleep(0.001)


def test_concurrent_requests_of_two_gateways_never_pass_a_hard_budget(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000)
        await s.load()
        other = s.new_gateway()
        asks = [(s.ask(10, 90, least_output=90), (s.gateway, other)[i % 2]) for i in range(40)]
        outcomes = await asyncio.gather(*(outcome(s, ask, gateway) for ask, gateway in asks))
        assert sorted(outcomes) == ["budget_exceeded"] * 30 + ["ok"] * 10
        assert await s.accounts() == [(0, 1000)]
        await s.written(s.gateway, other)

    play(url, scene)


def test_what_is_not_used_is_given_back_and_what_is_used_stays(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100)
        await s.load()
        grant = await s.gateway.reserve(s.ask(10, 90))
        assert await outcome(s, s.ask(1, 0)) == "budget_exceeded"
        s.settle(grant, 10, 5)
        await s.written()
        assert await s.accounts() == [(15, 0)]
        assert await outcome(s, s.ask(0, 85)) == "ok"

    play(url, scene)


def test_every_scope_gives_or_none_does(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.registry.create_tenant("acme")
        await s.budgets.set("all", 1000)
        await s.budgets.set("tenant:acme", 50)
        await s.limits.set("tenant:acme", What.REQUESTS, 10, per="minute")
        await s.load()
        with pytest.raises(BudgetExceeded, match="tenant:acme") as caught:
            await s.gateway.reserve(s.ask(60, 0, tenant="acme"))
        assert caught.value.scope == "tenant:acme"
        assert set(await s.accounts()) <= {(0, 0)}
        assert await s.rows("SELECT * FROM paces WHERE full_ns > 0") == []
        grant = await s.gateway.reserve(s.ask(40, 0, tenant="acme"))
        assert sorted(await s.accounts()) == [(0, 40), (0, 40)]
        assert grant.granted.requests is not None
        assert (grant.granted.requests.limit, grant.granted.requests.remaining) == (10, 9)

    play(url, scene)


def test_an_answer_is_cut_to_what_the_budget_pays_for_unless_that_is_too_little(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100)
        await s.load()
        grant = await s.gateway.reserve(s.ask(30, 1000, least_output=16))
        assert (grant.granted.num_output, grant.granted.granted_nano) == (70, 100)
        s.settle(grant, 30, 60)
        await s.written()
        assert await outcome(s, s.ask(0, 1000, least_output=16)) == "budget_exceeded"  # 10 are left
        assert await outcome(s, s.ask(0, 10, least_output=16)) == "ok"  # it asks for no more than that

    play(url, scene)


def test_budgets_by_model_key_and_tenant_count_their_own(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.registry.create_tenant("a")
        await s.registry.create_tenant("b")
        await s.budgets.set("tenant:*", 100, model="dear")
        await s.load()
        for tenant in ("a", "b"):
            assert await outcome(s, s.ask(100, tenant=tenant, model="dear")) == "ok"
            assert await outcome(s, s.ask(1, tenant=tenant, model="dear")) == "budget_exceeded"
            assert await outcome(s, s.ask(1000, tenant=tenant, model="cheap")) == "ok"
        assert await outcome(s, s.ask(1000, model="dear")) == "ok"  # no tenant, no budget

    play(url, scene)


def test_a_soft_budget_warns_and_a_hard_one_warns_before_it_refuses(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 10, period="day", is_hard=False)
        await s.budgets.set("all", 100, period="month", soft_nano=80)
        await s.load()
        first = await s.gateway.reserve(s.ask(5))
        assert first.granted.warnings == ()
        second = await s.gateway.reserve(s.ask(20))
        assert second.granted.warnings == ("all per day",)
        third = await s.gateway.reserve(s.ask(60))
        assert third.granted.warnings == ("all per day", "all per month")
        assert await outcome(s, s.ask(20)) == "budget_exceeded"

    play(url, scene)


@pytest.mark.parametrize(("spent", "pays_in_s"), [(8, 3600), (3, None)])
def test_a_rolling_budget_says_when_it_will_pay_again(tmp_path: Path, spent: int, pays_in_s: int | None) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 10, period="rolling:1h")
        await s.load()
        grant = await s.gateway.reserve(s.ask(spent))
        s.settle(grant, spent)
        held = await s.gateway.reserve(s.ask(10 - spent))
        with pytest.raises(BudgetExceeded, match="all per rolling:1h") as caught:
            await s.gateway.reserve(s.ask(5))
        s.settle(held)
        if pays_in_s is None:  # what is set aside may be given back at any time
            assert caught.value.retry_after_s is None
        else:
            assert caught.value.retry_after_s is not None
            # A minute's spending leaves together, and the minute may have ended since.
            assert pays_in_s - 60 < caught.value.retry_after_s <= pays_in_s + 60
            assert "wait until 20" in caught.value.message

    play(f"sqlite:///{tmp_path / 'a.db'}", scene)


def test_limits_by_requests_tokens_and_calls_at_a_time(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.limits.set("all", What.REQUESTS, 3, per="minute", model="r")
        await s.limits.set("all", What.TOKENS, 100, per="hour", model="t")
        await s.limits.set("all", What.PARALLEL, 2, model="p")
        await s.load()
        assert [await outcome(s, s.ask(1, model="r")) for _ in range(4)] == ["ok"] * 3 + ["rate_limit_exceeded"]
        token_grant = await s.gateway.reserve(s.ask(20, 60, model="t"))
        with pytest.raises(RateLimited) as caught:
            await s.gateway.reserve(s.ask(20, 10, model="t"))
        assert 300 < caught.value.retry_after_s < 420  # 10 of 100 tokens an hour
        assert dict(caught.value.headers)["x-ratelimit-limit-tokens"] == "100"
        s.settle(token_grant, 20, 5)  # gives 55 back
        assert await outcome(s, s.ask(20, 10, model="t")) == "ok"
        parallel = [await s.gateway.reserve(s.ask(1, model="p")) for _ in range(2)]
        assert await outcome(s, s.ask(1, model="p")) == "rate_limit_exceeded"
        s.settle(parallel[0])
        assert await outcome(s, s.ask(1, model="p")) == "ok"

    play(url, scene)


def test_a_task_has_its_own_steps_and_its_own_money(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.registry.create_tenant("a")
        await s.limits.set("tenant:*", What.STEPS, 2)
        await s.budgets.set("tenant:a", 10, period="task")
        await s.load()

        async def step(task: str, num: int) -> str:
            return await outcome(s, s.ask(num, tenant="a", task=task))

        assert [await step("t1", 1) for _ in range(3)] == ["ok", "ok", "task_exhausted"]
        assert [await step("t2", 8), await step("t2", 8)] == ["ok", "budget_exceeded"]
        assert [await step("", 50) for _ in range(3)] == ["ok"] * 3  # not part of any task

    play(url, scene)


def test_a_gateway_that_is_gone_gives_back_what_it_had_reserved_when_its_leases_end(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100)
        await s.limits.set("all", What.PARALLEL, 1)
        await s.load()
        gone = s.new_gateway()
        grant = await gone.reserve(s.ask(10, 90))
        grant.has_input, grant.num_output = True, 20
        await gone.renew()
        await s.gateway.sweep()
        assert await s.accounts() == [(0, 100)]  # its lease stands
        await s.let_leases_run_out()
        await s.gateway.sweep()
        assert await s.accounts() == [(30, 0)]  # what it was known to have done is charged
        assert await outcome(s, s.ask(0, 70)) == "ok"
        (row,) = await s.rows("SELECT outcome, cost_nano, is_estimate FROM settlements")
        assert row == {"outcome": "expired", "cost_nano": 30, "is_estimate": 1}

    play(url, scene)


def test_a_settlement_that_comes_after_its_lease_adds_what_was_not_charged_yet(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100)
        await s.load()
        slow = s.new_gateway()
        grant = await slow.reserve(s.ask(10, 90))
        grant.has_input = True
        await slow.renew()
        await s.let_leases_run_out()
        await s.gateway.sweep()
        assert await s.accounts() == [(10, 0)]
        assert not slow.is_lost(grant)
        await slow.renew()
        assert slow.is_lost(grant)  # it must stop
        s.settle(grant, 10, 25, gateway=slow)
        s.settle(grant, 10, 25, gateway=slow)  # an answer that got lost: written twice, counted once
        await s.written(slow)
        assert await s.accounts() == [(35, 0)]
        (row,) = await s.rows("SELECT outcome, cost_nano FROM settlements")
        assert row == {"outcome": "stop", "cost_nano": 35}

    play(url, scene)


def test_renewed_leases_stand_and_hold_the_stream(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100)
        await s.load()
        grant = await s.gateway.reserve(s.ask(10, 10))
        s.clock.advance(26.0)
        assert not s.gateway.is_lost(grant)
        await s.gateway.renew()
        s.clock.advance(26.0)
        assert not s.gateway.is_lost(grant)
        s.clock.advance(2.0)
        assert s.gateway.is_lost(grant)
        grant.has_input = True
        await s.gateway.renew()  # notes the progress, which is not charged yet
        assert await s.accounts() == [(0, 20)]
        s.settle(grant, 10, 5)
        await s.written()
        assert await s.accounts() == [(15, 0)]

    play(url, scene)


def test_a_caller_that_does_not_wait_leaves_nothing_reserved(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100)
        await s.load()
        task = asyncio.ensure_future(s.gateway.reserve(s.ask(10, 10)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await s.written()
        assert await s.accounts() in ([], [(0, 0)])
        assert await outcome(s, s.ask(0, 100)) == "ok"

    play(url, scene)


def test_without_the_database_hard_budgets_refuse_and_other_limits_go_on(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100, model="hard")
        await s.budgets.set("all", 100, model="soft", is_hard=False)
        await s.limits.set("all", What.REQUESTS, 2, per="day", model="soft")
        await s.load()
        before = await s.gateway.reserve(s.ask(10, model="hard"))
        await s.database.close()
        assert await outcome(s, s.ask(1, model="hard")) == "store_unavailable"
        alone = await s.gateway.reserve(s.ask(30, model="soft"))
        assert await outcome(s, s.ask(1, model="soft")) == "ok"
        assert await outcome(s, s.ask(1, model="soft")) == "rate_limit_exceeded"
        s.settle(alone, 30)
        s.settle(before, 10)
        await asyncio.sleep(0.01)  # it tries to write them, in vain
        await late(s, 2)
        await s.database.open()
        await s.written()
        assert sorted(await s.accounts()) == [(10, 0), (30, 0)]
        assert len(await s.rows("SELECT id FROM settlements")) == 2

    play(url, scene)


def test_a_full_disk_refuses_hard_budgets_and_loses_no_settlement(tmp_path: Path) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100, model="hard")
        await s.load()
        before = await s.gateway.reserve(s.ask(10, model="hard"))
        database: Any = s.database
        await database.visit("PRAGMA max_page_count = 1", ())  # no more than it has now
        granted = [before]

        async def fill() -> None:
            while len(granted) < 500:
                granted.append(await s.gateway.reserve(s.ask(0, model="hard")))

        with pytest.raises(StoreUnavailable, match="full"):
            await fill()
        assert await s.accounts() == [(0, 10)]
        for grant in granted:
            s.settle(grant, grant.ask.num_input)
        await asyncio.sleep(0.01)
        await database.visit("PRAGMA max_page_count = 100000", ())
        await s.written()
        assert await s.accounts() == [(10, 0)]
        assert len(await s.rows("SELECT id FROM settlements")) == len(granted)

    play(f"sqlite:///{tmp_path / 'full.db'}", scene)


def test_a_settlement_that_cannot_be_written_takes_no_other_along(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1000)
        await s.load()
        grants = [await s.gateway.reserve(s.ask(10)) for _ in range(3)]
        s.settle(grants[0], 10)
        s.settle(grants[1], 10, num_output=1 << 70)  # no column holds that
        s.settle(grants[2], 10)
        await s.written()
        assert {row["id"] for row in await s.rows("SELECT id FROM settlements")} == {grants[0].ask.id, grants[2].ask.id}
        assert await s.accounts() == [(20, 10)]  # its own ends with its lease
        s.settle(await s.gateway.reserve(s.ask(5)), 5)
        await s.written()
        assert await s.accounts() == [(25, 10)]
        assert "failed by itself" in caplog.text

    play(url, scene, lend_share=0)


def test_settlements_that_wait_have_a_bound(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.gateway.admission.authority.MAX_LATE", 2)

    async def scene(s: Scene) -> None:
        grants = [await s.gateway.reserve(s.ask(1)) for _ in range(3)]
        await s.database.close()
        for grant in grants:
            s.settle(grant)
        await asyncio.sleep(0.01)  # it tries to write them, in vain
        await late(s, 3)
        with pytest.raises(StoreUnavailable, match="settlements wait"):
            await s.gateway.reserve(s.ask(1))
        await s.database.open()

    play(url, scene)


def test_closing_writes_what_is_queued(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.gateway.open()
        grant = await s.gateway.reserve(s.ask(1))
        s.settle(grant, 1)
        await s.gateway.close()
        assert len(await s.rows("SELECT id FROM settlements")) == 1
        assert await s.rows("SELECT id FROM reservations") == []

    play(url, scene)


def test_closing_writes_what_comes_while_a_batch_is_under_way(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.gateway.open()
        grants = [await s.gateway.reserve(s.ask(1)) for _ in range(5)]
        asking = asyncio.ensure_future(s.gateway.reserve(s.ask(1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # now its batch is under way
        for grant in grants:
            s.settle(grant, 1)
        await s.gateway.close()
        assert len(await s.rows("SELECT id FROM settlements")) == 5
        s.settle(await asking, 1)

    play(url, scene)


def test_a_reset_budget_begins_anew_and_a_removed_one_is_gone(url: str) -> None:
    async def scene(s: Scene) -> None:
        rule = await s.budgets.set("all", 100)
        await s.load()
        old = await s.gateway.reserve(s.ask(100))
        await s.budgets.reset(rule.id)
        await s.load()
        assert await outcome(s, s.ask(100)) == "ok"
        s.settle(old, 100)
        await s.written()
        assert await s.accounts() == [(0, 100)]
        await s.budgets.remove(rule.id)
        await s.load()
        assert await outcome(s, s.ask(10_000)) == "ok"

    play(url, scene)


def test_a_model_without_a_price_is_not_charged(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 1)
        await s.load()
        grant = await s.gateway.reserve(s.ask(500, 500, price=None))
        s.settle(grant, 500, 500)
        await s.written()
        assert await s.accounts() == [(0, 0)]
        (row,) = await s.rows("SELECT cost_nano, price_source FROM settlements")
        assert row == {"cost_nano": None, "price_source": None}

    play(url, scene)
