"""Callers that ask again and again are granted out of what was lent for them, exactly as the database would have."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.core.errors import BudgetExceeded, StoreUnavailable
from headrace.gateway.admission import Grant
from headrace.gateway.limits import What
from tests.gateway_scene import Scene, play


async def open_allowance(s: Scene, tenant: str = "", num: int = 5) -> None:
    """Ask twice: the second request opens it."""
    for _ in range(2):
        s.settle(await s.gateway.reserve(s.ask(num, 5, tenant=tenant)), num, 5)
        await s.written()
    assert s.gateway.stats().allowances == 1


def draw(s: Scene, num: int = 1, tenant: str = "") -> list[Grant]:
    """Take requests out of it without a turn of the event loop: the database cannot have been asked."""
    grants = []
    for _ in range(num):
        step = s.gateway.reserve(s.ask(5, 5, tenant=tenant))
        try:
            step.send(None)
        except StopIteration as end:
            grants.append(end.value)
        else:
            raise AssertionError("it waits for the database")
    return grants


async def ask_the_database(s: Scene) -> None:
    """One request that is not granted out of an allowance."""
    before = s.gateway.stats().drawn
    grant = await s.gateway.reserve(s.ask(5, 5))
    assert s.gateway.stats().drawn == before
    s.settle(grant)
    await s.written()


async def forget(s: Scene) -> None:
    """Have all allowances given back."""
    s.gateway._allowances.give_back()
    s.gateway._start()
    await s.written()


def test_who_asks_again_does_not_wait_and_is_charged_to_the_token(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100_000)
        await s.budgets.set("all", 100_000, period="rolling:1d")
        await s.limits.set("all", What.PARALLEL, 1000)
        await s.limits.set("all", What.TOKENS, 100_000, per="hour")
        await s.load()
        await open_allowance(s)
        for grant in draw(s, 4):
            s.settle(grant, 5, 3)
        await s.written()
        assert s.gateway.stats().drawn == 4
        assert (await s.rows("SELECT COUNT(*) AS num FROM settlements"))[0]["num"] == 6
        assert all(spent == 2 * 10 + 4 * 8 < spent + held for spent, held in await s.accounts())
        await forget(s)
        assert await s.accounts() == [(52, 0)] * 2
        assert await s.rows("SELECT id FROM reservations") == []
        assert {row["held"] for row in await s.rows("SELECT held FROM paces WHERE held > 0")} == set()

    play(url, scene)


def test_a_drawn_request_is_written_down_while_it_runs(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100_000)
        await s.load()
        await open_allowance(s)
        (grant,) = draw(s)
        assert not grant.is_written
        assert not s.gateway.is_lost(grant)
        await s.written()
        assert grant.is_written
        (row,) = await s.rows(f"SELECT granted_nano FROM reservations WHERE id = '{grant.ask.id}'")
        assert row["granted_nano"] == 10
        s.settle(grant, 5, 5)
        await forget(s)
        assert await s.accounts() == [(30, 0)]

    play(url, scene)


def test_an_allowance_grows_before_it_runs_out_of_requests(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100_000)
        await s.load()
        await open_allowance(s)
        for num in (7, 13, 26):  # more each time than the one before had left
            for grant in draw(s, num):
                s.settle(grant, 5, 5)
            await s.written()
        await forget(s)
        assert await s.accounts() == [(480, 0)]

    play(url, scene)


def test_what_is_nearly_used_up_is_never_lent(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 319)  # a 32nd of it is less than a request
        await s.load()
        for _ in range(4):
            s.settle(await s.gateway.reserve(s.ask(5, 5)), 5, 5)
            await s.written()
        assert s.gateway.stats().allowances == 0
        assert s.gateway.stats().drawn == 0

    play(url, scene)


def test_limits_of_calls_at_a_time_and_steps_of_tasks_stay_exact(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.limits.set("all", What.PARALLEL, 8)
        await s.registry.create_tenant("a")
        await s.limits.set("tenant:a", What.STEPS, 1000)
        await s.load()
        for fields in ({}, {"tenant": "a", "task": "t"}):
            for _ in range(3):
                s.settle(await s.gateway.reserve(s.ask(1, **fields)), 1)
                await s.written()
        assert s.gateway.stats().allowances == 0

    play(url, scene)


def test_a_gateway_that_dies_gives_back_what_it_was_lent_and_leaves_no_row_for_it(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100_000)
        await s.limits.set("all", What.PARALLEL, 1000)
        await s.load()
        await open_allowance(s)
        (written,) = draw(s)
        await s.written()
        draw(s, 3)  # and these are never told to the database
        s.kill(s.gateway)
        await s.let_leases_run_out()
        other = s.new_gateway()
        await other.sweep()
        assert other.stats().expired == 2
        assert await s.accounts() == [(20, 0)]
        expired = await s.rows("SELECT id, cost_nano FROM settlements WHERE outcome = 'expired'")
        assert expired == [{"id": written.ask.id, "cost_nano": 0}]
        assert {row["held"] for row in await s.rows("SELECT held FROM paces")} == {0}
        s.gateway = other

    play(url, scene)


def test_requests_out_of_an_allowance_that_was_released_meanwhile_stop_and_are_charged(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100_000)
        await s.load()
        await open_allowance(s)
        await s.let_leases_run_out()
        await s.new_gateway().sweep()  # it had not renewed in time, and does not know it yet
        (grant,) = draw(s)
        await s.written()
        assert s.gateway.is_lost(grant)
        s.settle(grant, 5, 2)
        await s.written()
        assert s.gateway.stats().allowances == 0
        assert await s.accounts() == [(27, 0)]

    play(url, scene)


def test_nothing_is_drawn_once_the_lease_may_be_over(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100_000)
        await s.load()
        await open_allowance(s)
        s.clock.advance(15.0)
        await ask_the_database(s)
        await s.gateway.renew()
        s.settle(draw(s)[0], 5, 5)
        await forget(s)
        assert await s.accounts() == [(30, 0)]

    play(url, scene)


def test_without_the_database_nothing_is_drawn_and_what_began_is_written_later(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100_000)
        await s.load()
        await open_allowance(s)
        await s.database.close()
        (grant,) = draw(s)  # it was set aside: the budget holds
        with pytest.raises(StoreUnavailable):
            await s.gateway.reserve(s.ask(5, 5000))  # more than was lent: the database is asked
        with pytest.raises(StoreUnavailable):
            await s.gateway.reserve(s.ask(5, 5))
        s.settle(grant, 5, 5)
        assert s.gateway.stats().late > 0
        await s.database.open()
        await s.written()
        await forget(s)
        assert await s.accounts() == [(30, 0)]

    play(url, scene)


def test_before_a_caller_is_refused_its_gateway_gives_back_what_it_keeps(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100)
        await s.load()
        await open_allowance(s)
        assert (await s.accounts())[0][1] > 30
        grant = await s.gateway.reserve(s.ask(70, 5, tenant="other"))
        assert grant.granted.num_output == 5
        with pytest.raises(BudgetExceeded):
            await s.gateway.reserve(s.ask(10, tenant="other"))
        s.settle(grant, 70, 5)
        await forget(s)
        assert await s.accounts() == [(95, 0)]

    play(url, scene, lend_share=2)


def test_callers_are_told_where_their_limits_stand_request_by_request(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.limits.set("all", What.REQUESTS, 10_000, per="day")
        await s.load()
        await open_allowance(s)
        paces = [grant.granted.requests for grant in draw(s, 3)]
        assert [(pace.limit, pace.remaining) for pace in paces if pace] == [(10_000, 10_000 - n) for n in (3, 4, 5)]

    play(url, scene)


def test_other_rules_and_idle_callers_end_an_allowance(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100_000)
        await s.load()
        await open_allowance(s)
        await s.budgets.set("all", 90_000)
        await s.load()
        await ask_the_database(s)  # by the new rules, and with that a new allowance
        draw(s)
        for _ in range(2):  # used since the last look; not used
            s.gateway._look_idle()
            await s.written()
        assert s.gateway.stats().allowances == 0
        assert await s.accounts() == [(20, 10)]  # the one that runs

    play(url, scene)


def test_a_fault_of_ours_leaves_no_caller_waiting(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100_000)
        await s.load()
        await open_allowance(s)
        (grant,) = draw(s)

        async def broken(commands: Any) -> Any:
            raise ValueError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(s.gateway, "_carry_out", broken)
            await s.written()
        assert s.gateway.is_lost(grant)
        assert s.gateway.stats().allowances == 0
        s.settle(grant, 5, 5)
        await s.written()
        await s.let_leases_run_out()
        await s.gateway.sweep()
        assert await s.accounts() == [(30, 0)]

    play(url, scene)


def test_a_gateway_that_closes_keeps_nothing(url: str) -> None:
    async def scene(s: Scene) -> None:
        await s.budgets.set("all", 100_000)
        await s.load()
        await open_allowance(s)
        (grant,) = draw(s)
        s.settle(grant, 5, 5)
        await asyncio.wait_for(s.gateway.close(), 60)
        assert await s.accounts() == [(30, 0)]
        assert await s.rows("SELECT id FROM reservations") == []

    play(url, scene)
