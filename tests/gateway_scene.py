"""A stage for tests of limits and budgets: a database, rules, and gateways that share it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from headrace.gateway.admission import Authority, Grant, Rulebook
from headrace.gateway.admission.asks import Ask
from headrace.gateway.budgets import Settlement, TokenCounts, TokenPrice
from headrace.gateway.budgets.registry import BudgetRegistry
from headrace.gateway.identity import Registry
from headrace.gateway.limits.registry import LimitRegistry
from headrace.gateway.store import Database, migrate, open_database
from headrace.gateway.store.watch import Watch
from headrace.testing import VirtualClock

# One nano-dollar a token, in and out: amounts in tests are tokens.
UNIT = TokenPrice(
    input_uncached=10**6, cache_read=10**6, cache_write=10**6, output_text=10**6, output_reasoning=10**6, source="unit"
)
_numbers = itertools.count()


class Scene:
    """One database, its administration, and gateways over it."""

    def __init__(self, database: Database, lend_share: int = 32) -> None:
        self.database = database
        self.lend_share = lend_share
        self.clock = VirtualClock()
        self.registry = Registry(database)
        self.limits = LimitRegistry(database)
        self.budgets = BudgetRegistry(database)
        self.rulebook = Rulebook()
        self.gateway = self.new_gateway()

    def new_gateway(self) -> Authority:
        return Authority(self.database, self.clock, lease_s=30.0, settle_s=0.001, lend_share=self.lend_share)

    def kill(self, gateway: Authority) -> None:
        """Let a gateway do nothing any more, as if its process had gone."""
        for timer in (gateway._timer, gateway._idle):
            if timer is not None:
                timer.cancel()
        if gateway._worker is not None:
            gateway._worker.cancel()

    async def load(self) -> None:
        await Watch(self.database, self.clock, [self.rulebook]).look()

    def ask(self, num_input: int = 0, num_output: int = 0, **fields: Any) -> Ask:
        who = {"tenant": "", "key_id": "", "model": "m", "task": "", **fields}
        who.pop("price", None)
        who.pop("least_output", None)
        terms = self.rulebook.terms(**who, now_s=self.gateway.now_ns() / 1e9)
        return Ask(
            id=f"r{next(_numbers)}",
            request_id="x",
            task=who["task"],
            terms=terms,
            price=fields.get("price", UNIT),
            num_input=num_input,
            num_output=num_output,
            least_output=fields.get("least_output", 1),
        )

    def settle(self, grant: Grant, num_input: int = 0, num_output: int = 0, gateway: Authority | None = None) -> None:
        (gateway or self.gateway).settle(grant, settlement(grant, num_input, num_output, self.gateway.now_ns()))

    async def written(self, *gateways: Authority) -> None:
        """Wait until everything that was asked of the gateways is in the database."""
        for gateway in gateways or (self.gateway,):
            idle_turns = 0
            while idle_turns < 5:  # what is answered may give something back in a later turn
                await asyncio.sleep(0)
                is_busy = gateway._worker is not None and not gateway._worker.done()
                is_busy = is_busy or gateway._allowances.is_due
                idle_turns = 0 if is_busy or gateway.stats().late else idle_turns + 1

    async def accounts(self) -> list[tuple[int, int]]:
        """Spent and reserved of every account of every budget."""
        found = [state for rule in await self.budgets.rules() for state in await self.budgets.accounts(rule.id)]
        return [(state.spent_nano, state.reserved_nano) for state in found]

    async def rows(self, sql: str) -> list[Any]:
        async with self.database.transaction(writes=False) as tx:
            return [dict(row) for row in await tx.fetch(sql)]

    async def let_leases_run_out(self) -> None:
        async with self.database.transaction() as tx:
            await tx.fetch("UPDATE reservations SET lease_until_ns = 0")


def settlement(grant: Grant, num_input: int, num_output: int, now_ns: int) -> Settlement:
    ask, counts = grant.ask, TokenCounts(input_uncached=num_input, output_text=num_output)
    return Settlement(
        id=ask.id,
        request_id=ask.request_id,
        settled_ns=now_ns,
        tenant=ask.tenant,
        key_id=ask.key_id,
        model=ask.model,
        task=ask.task,
        outcome="stop",
        counts=counts,
        is_estimate=False,
        reserved_nano=grant.granted.granted_nano,
        cost_nano=None if ask.price is None else ask.price.cost_nano(counts),
        price_source=None if ask.price is None else ask.price.source,
    )


def play(url: str, scene: Callable[[Scene], Awaitable[None]], lend_share: int = 32) -> None:
    """Run a scene on a database with its schema."""

    async def whole() -> None:
        database = open_database(url)
        await database.open()
        try:
            await migrate(database)
            world = Scene(database, lend_share)
            await scene(world)
            await world.written()
        finally:
            await database.close()

    asyncio.run(whole())
