"""No interleaving of reserve, settle, cancel, crash and expiry passes a hard budget: gateways over one database."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from headrace.core.errors import BudgetExceeded, RateLimited
from headrace.gateway.admission import Authority, Grant
from headrace.gateway.limits import What
from headrace.gateway.store import migrate, open_database
from tests.gateway_scene import Scene
from tests.postgres import new_schema

LIMITS = {"all": 1000, "tenant:a": 400, "tenant:b": 700}
PARALLEL = 5
SNAPSHOT = """
SELECT 'account' AS kind, id, spent_nano AS one, reserved_nano AS two, '' AS holds FROM spends
UNION ALL SELECT 'reservation', id, granted_nano, 0, holds FROM reservations WHERE is_open = 1
"""


class BudgetMachine(RuleBasedStateMachine):
    """Gateways come, grant, settle and die. The model: what is set aside and what was spent, per budget."""

    make_url: ClassVar[Any]
    lend_share: ClassVar[int] = 32  # too small a part of these limits to be lent
    parallel: ClassVar[int] = PARALLEL

    def __init__(self) -> None:
        super().__init__()
        self.live: list[tuple[Authority, Grant]] = []
        self.orphans: list[Grant] = []
        self.orphaned: list[str] = []  # allowances of the dead
        self.noted: dict[str, int] = {}  # what a reservation was known to have cost when it was last renewed
        self.spent: dict[str, int] = dict.fromkeys(LIMITS, 0)
        url = type(self).make_url()
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.begin(url))

    async def begin(self, url: str) -> None:
        database = open_database(url)
        await database.open()
        await migrate(database)
        self.scene = Scene(database, self.lend_share)
        for tenant in ("a", "b"):
            await self.scene.registry.create_tenant(tenant)
        for subject, limit_nano in LIMITS.items():
            await self.scene.budgets.set(subject, limit_nano, period="total")
        await self.scene.limits.set("all", What.PARALLEL, self.parallel)
        await self.scene.load()
        self.gateways = [self.scene.gateway, self.scene.new_gateway()]

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @rule(
        wishes=st.lists(
            st.tuples(st.sampled_from(["", "a", "b"]), st.integers(0, 300), st.integers(0, 300), st.integers(0, 1)),
            min_size=1,
            max_size=6,
        )
    )
    def reserve(self, wishes: list[tuple[str, int, int, int]]) -> None:
        """Several requests at once, through both gateways."""

        async def one(tenant: str, num_input: int, num_output: int, at: int) -> None:
            ask = self.scene.ask(num_input, num_output, tenant=tenant, least_output=20)
            try:
                grant = await self.gateways[at].reserve(ask)
            except (BudgetExceeded, RateLimited):
                return
            assert grant.granted.granted_nano <= num_input + num_output
            assert grant.granted.num_output >= min(20, num_output)
            self.live.append((self.gateways[at], grant))

        async def all_of_them() -> None:
            await asyncio.gather(*(one(*wish) for wish in wishes))

        self.run(all_of_them())

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        gateway, grant = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        num_input = data.draw(st.sampled_from([0, grant.ask.num_input]))
        num_output = data.draw(st.integers(0, grant.granted.num_output)) if num_input == grant.ask.num_input else 0

        async def end() -> None:
            self.scene.settle(grant, num_input, num_output, gateway=gateway)
            await self.scene.written(gateway)

        self.run(end())
        self.charge(grant, num_input + num_output)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """Streams have come some way, and their leases are renewed with it."""
        for gateway, grant in self.live:
            grant.has_input = True
            grant.num_output = data.draw(st.integers(grant.num_output, grant.granted.num_output))
            assert not gateway.is_lost(grant)
        for gateway in self.gateways:
            self.renew_leases(gateway)

    @rule(tenant=st.sampled_from(["", "a", "b"]), num=st.integers(0, 400), num_turns=st.integers(0, 6))
    def cancel_while_reserving(self, tenant: str, num: int, num_turns: int) -> None:
        async def hasty() -> None:
            gateway = self.gateways[0]
            task = asyncio.ensure_future(gateway.reserve(self.scene.ask(num, 0, tenant=tenant)))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, Grant):
                self.scene.settle(result, gateway=gateway)
            await self.scene.written(gateway)

        self.run(hasty())

    @precondition(lambda self: any(gateway is self.gateways[1] for gateway, _ in self.live))
    @rule(data=st.data(), is_renewed=st.booleans())
    def crash(self, data: st.DataObject, is_renewed: bool) -> None:
        """The second gateway dies in the middle of everything; another takes its place."""
        dead = self.gateways[1]
        for gateway, grant in list(self.live):
            if gateway is dead:
                self.live.remove((gateway, grant))
                grant.has_input = data.draw(st.booleans())
                grant.num_output = data.draw(st.integers(0, grant.granted.num_output)) if grant.has_input else 0
                self.orphans.append(grant)
        if is_renewed:
            self.renew_leases(dead)
        self.scene.kill(dead)
        self.orphaned += [f"allowance/{one.name}/%" for one in dead._allowances._kinds.values()]
        self.gateways[1] = self.scene.new_gateway()

    def renew_leases(self, gateway: Authority) -> None:
        self.run(gateway.renew())
        for grant in gateway._live.values():
            if not grant.is_written:
                continue
            counts = grant.progress()
            self.noted[grant.ask.id] = counts.num_input + counts.num_output

    @rule(at=st.integers(0, 1))
    def give_back(self, at: int) -> None:
        """A gateway returns what it holds for callers who may ask again."""
        gateway = self.gateways[at]

        async def give_back() -> None:
            if gateway._allowances.give_back():
                gateway._start()
            await self.scene.written(gateway)

        self.run(give_back())
        assert not len(gateway._allowances)

    @precondition(lambda self: self.orphans or self.orphaned)
    @rule()
    def leases_of_the_dead_run_out(self) -> None:
        async def expire() -> None:
            async with self.scene.database.transaction() as tx:
                for grant in self.orphans:
                    await tx.fetch("UPDATE reservations SET lease_until_ns = 0 WHERE id = $1", grant.ask.id)
                for name in self.orphaned:
                    await tx.fetch("UPDATE reservations SET lease_until_ns = 0 WHERE id LIKE $1", name)
            await self.gateways[0].sweep()

        self.run(expire())
        for grant in self.orphans:
            self.charge(grant, self.noted.get(grant.ask.id, 0))
        self.orphans.clear()
        self.orphaned.clear()

    def charge(self, grant: Grant, nano: int) -> None:
        for subject in self.spent:
            if subject in ("all", f"tenant:{grant.ask.tenant}"):
                self.spent[subject] += nano

    @invariant()
    def accounts_are_what_the_model_says_and_never_over(self) -> None:
        held = [grant for _, grant in self.live] + self.orphans
        rules = self.run(self.scene.budgets.rules())
        found = self.run(self.scene.rows(SNAPSHOT))  # one statement: gateways may be writing between two
        accounts, rows = ([row for row in found if row["kind"] == kind] for kind in ("account", "reservation"))
        for budget in rules:
            account = next((row for row in accounts if row["id"].startswith(f"{budget.id}/")), None)
            spent, reserved = (account["one"], account["two"]) if account else (0, 0)
            running = [g for g in held if budget.subject in ("all", f"tenant:{g.ask.tenant}")]
            assert spent == self.spent[budget.subject]
            assert spent + sum(grant.granted.granted_nano for grant in running) <= budget.limit_nano
            if account:
                assert reserved == sum(row["one"] for row in rows if account["id"] in row["holds"])
            assert spent + reserved <= budget.limit_nano
            written = {grant.ask.id: grant.granted.granted_nano for grant in running if grant.is_written}
            assert written.items() <= {row["id"]: row["one"] for row in rows}.items()
        assert len(held) <= self.parallel
        (row,) = self.run(self.scene.rows("SELECT COALESCE(SUM(cost_nano), 0) AS cost FROM settlements"))
        assert int(row["cost"]) == self.spent["all"]

    def teardown(self) -> None:
        self.run(self.scene.database.close())
        self.loop.close()


class LendingMachine(BudgetMachine):
    """The same where gateways hold allowances, of half of what is left: most requests are granted without asking."""

    lend_share = 2
    parallel = 4 * PARALLEL
    num_drawn = 0

    def run(self, work: Any) -> Any:
        """Let everything be written after each rule: what comes of the next does not depend on time."""

        async def whole() -> Any:
            result = await work
            if hasattr(self, "gateways"):
                await self.scene.written(*self.gateways)
            return result

        return super().run(whole())

    @rule(
        tenant=st.sampled_from(["", "a", "b"]),
        sizes=st.lists(st.integers(0, 20), min_size=2, max_size=5),
        burst=st.lists(st.integers(0, 10), max_size=4),
        at=st.integers(0, 1),
        is_last=st.booleans(),
    )
    def ask_again_and_again(self, tenant: str, sizes: list[int], burst: list[int], at: int, is_last: bool) -> None:
        """A caller opens an allowance and draws from it; the second gateway may die before it has written that down."""
        gateway = self.gateways[at]
        granted: list[Grant] = []

        async def one(size: int) -> None:
            try:
                granted.append(await gateway.reserve(self.scene.ask(size, 5, tenant=tenant)))
            except (BudgetExceeded, RateLimited):
                return

        async def all_of_them() -> None:
            before = gateway.stats().drawn
            for size in sizes:
                await one(size)
                await self.scene.written(gateway)
            for size in burst:
                await one(size)
            type(self).num_drawn += gateway.stats().drawn - before
            if is_last and at == 1:
                self.die(gateway, granted)

        self.run(all_of_them())
        self.live += [(gateway, grant) for grant in granted if grant not in self.orphans]

    def die(self, gateway: Authority, granted: list[Grant]) -> None:
        self.scene.kill(gateway)
        self.orphans += granted + [grant for other, grant in self.live if other is gateway]
        self.live = [(other, grant) for other, grant in self.live if other is not gateway]
        self.orphaned += [f"allowance/{one.name}/%" for one in gateway._allowances._kinds.values()]
        self.gateways[1] = self.scene.new_gateway()


def check(make_url: Any, num_examples: int, kind: type[BudgetMachine] = BudgetMachine) -> Any:
    machine: Any = type("Machine", (kind,), {"make_url": staticmethod(make_url)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
    return machine


def test_sqlite_never_passes_a_hard_budget(tmp_path: Path) -> None:
    numbers = itertools.count()
    check(lambda: f"sqlite:///{tmp_path / f'{next(numbers)}.db'}", num_examples=15)


def test_postgres_never_passes_a_hard_budget(postgres_url: str) -> None:
    check(lambda: new_schema(postgres_url), num_examples=6)


def test_sqlite_never_passes_a_hard_budget_out_of_allowances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.gateway.admission.allowances.HOPELESS_S", 0.0)  # clocks stand still here
    numbers = itertools.count()
    ran = check(lambda: f"sqlite:///{tmp_path / f'{next(numbers)}.db'}", num_examples=15, kind=LendingMachine)
    assert ran.num_drawn > 20


def test_postgres_never_passes_a_hard_budget_out_of_allowances(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.gateway.admission.allowances.HOPELESS_S", 0.0)  # clocks stand still here
    ran = check(lambda: new_schema(postgres_url), num_examples=6, kind=LendingMachine)
    assert ran.num_drawn > 5


@pytest.mark.parametrize("lend_share", [32, 2])
@pytest.mark.parametrize("num_gateways", [3])
def test_many_gateways_at_once_never_pass_a_hard_budget(postgres_url: str, num_gateways: int, lend_share: int) -> None:
    """Real concurrency: each gateway has connections of its own, so that transactions meet in the database."""

    async def storm() -> None:
        url = new_schema_url
        databases = [open_database(url) for _ in range(num_gateways)]
        for database in databases:
            await database.open()
        await migrate(databases[0])
        scenes = [Scene(database, lend_share) for database in databases]
        await scenes[0].registry.create_tenant("a")
        await scenes[0].budgets.set("all", 1000, period="total")
        await scenes[0].budgets.set("tenant:a", 600, period="total")
        for scene in scenes:
            await scene.load()

        async def client(scene: Scene, number: int) -> None:
            tenant = "a" if number % 2 else ""
            for _ in range(6):
                try:
                    grant = await scene.gateway.reserve(scene.ask(10, 90, tenant=tenant, least_output=90))
                except BudgetExceeded:
                    continue
                await asyncio.sleep(0)
                scene.settle(grant, 10, number % 20)

        await asyncio.gather(*(client(scene, number) for scene in scenes for number in range(8)))
        for scene in scenes:
            await scene.written()
            await scene.gateway.close()
        (row,) = await scenes[0].rows("SELECT SUM(cost_nano) AS cost FROM settlements")
        spent = {rule.subject: await scenes[0].budgets.accounts(rule.id) for rule in await scenes[0].budgets.rules()}
        assert spent["all"][0].spent_nano == int(row["cost"]) <= 1000
        assert spent["tenant:a"][0].spent_nano <= 600
        assert {state.reserved_nano for states in spent.values() for state in states} == {0}
        for database in databases:
            await database.close()

    new_schema_url = new_schema(postgres_url)
    asyncio.run(storm())
