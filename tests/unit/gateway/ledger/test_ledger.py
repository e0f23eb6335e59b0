"""The ledger against what the engine did: a served load adds up to the nanosecond and nano-dollar."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from headrace.cli import main as command
from headrace.core.clock import MonotonicClock
from headrace.core.delta import Delta, Usage
from headrace.core.request import Request, RequestId, SamplingParams, StopRules
from headrace.core.settings import GatewaySettings
from headrace.core.stats import EngineTime, RequestStats
from headrace.econ import MachineRate, cost_of_time, machine_rate, parse_usd
from headrace.engine import AsyncEngine, Engine
from headrace.gateway import Gateway
from headrace.gateway.ledger import Balance, PoolLine, UsageLine, allocate, balances, pool, settlements, usage
from headrace.gateway.ledger.engine_account import EngineAccount
from headrace.gateway.store import Database, Transaction, open_database
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits
from headrace.testing import ByteTokenizer, UniformModel

PRICES = {"m": "0.10/0.40/0.01"}
FOREVER = 2**62


class Books(NamedTuple):
    """A gateway before an engine, and the database both write to."""

    engine: AsyncEngine
    gateway: Gateway
    database: Database


@asynccontextmanager
async def books(url: str, settings: GatewaySettings) -> AsyncIterator[Books]:
    clock = MonotonicClock()
    model = UniformModel(num_blocks=24, block_size=4, vocab_size=256)
    limits = SchedulerLimits(max_num_seqs=8, max_step_tokens=16, max_context=60, max_waiting=500)
    engine = AsyncEngine(
        Engine(Scheduler(BlockPool(24), 4, limits), model, clock), ByteTokenizer(), clock, vocab_size=256
    )
    gateway = Gateway(url, settings, clock)
    await gateway.open()
    await engine.start()
    engine.bill_to(gateway.add_engine("m", engine.time))
    database = open_database(url)
    await database.open()
    try:
        yield Books(engine, gateway, database)
    finally:
        await engine.stop()
        await gateway.close()
        await database.close()


def ask(index: int, tenant: str = "a", max_tokens: int = 8) -> Request:
    return Request(
        request_id=RequestId(f"r{index}"),
        model="m",
        prompt=tuple(b"water"[: 1 + index % 5]),
        sampling=SamplingParams(seed=index),
        stop=StopRules(max_tokens=max_tokens),
        n=1 + index % 2,
        arrival_s=MonotonicClock().now(),
        tenant=tenant,
    )


async def load(found: Books, num_requests: int) -> list[Usage]:
    """Serve a mixed load; every fourth caller goes away early."""
    front = found.gateway.front(found.engine)
    chance = random.Random(7)
    told: list[Usage] = []

    async def one(index: int) -> None:
        leaves_after = chance.randint(1, 4) if index % 4 == 0 else 10**9
        deltas = front.generate(ask(index, "ab"[index % 2]))
        async with aclosing(deltas) as open_deltas:
            async for delta in open_deltas:
                assert isinstance(delta, Delta)
                if delta.usage is not None:
                    told.append(delta.usage)
                leaves_after -= 1
                if not leaves_after:
                    break

    await asyncio.gather(*(one(index) for index in range(num_requests)))
    return told


async def dearest(tx: Transaction) -> str:
    return str((await tx.fetch("SELECT id FROM settlements ORDER BY machine_nano DESC LIMIT 1"))[0]["id"])


def test_tenants_and_pool_are_the_whole_time_and_the_whole_bill(url: str) -> None:
    rate = parse_usd("3.30")

    async def main() -> None:
        settings = GatewaySettings(prices=PRICES, usd_per_hour="3.30")
        async with books(url, settings) as found:
            await load(found, 60)
            await found.engine.stop()
            time_ns = found.engine.time()
            await found.gateway.close()
            lines = await usage(found.database, "tenant", 0, FOREVER)
            rest = await pool(found.database, 0, FOREVER)
            assert sum(line.requests for line in lines) == 60
            assert [line.group for line in sorted(lines, key=lambda line: line.group)] == ["a", "b"]
            claimed_ns = sum(line.engine_ns for line in lines)
            assert claimed_ns == time_ns.requests_ns
            assert min(line.engine_ns for line in lines) > 0
            pool_ns = rest.loading_ns + rest.recomputed_ns + rest.abandoned_ns + rest.idle_ns
            assert claimed_ns + pool_ns == rest.total_ns >= time_ns.total_ns
            assert sum(line.machine_nano for line in lines) + rest.pool_nano == cost_of_time(rest.total_ns, rate)
            (balance,) = await balances(found.database)
            assert balance._replace(engine="", total_ns=0, bill_nano=0) == Balance("", "m", 0, 0, 0, 0, 0)
            assert balance.bill_nano == cost_of_time(rest.total_ns, rate)
            async with found.database.transaction() as tx:  # a nano-dollar that nobody would miss
                await tx.fetch(
                    "UPDATE settlements SET machine_nano = machine_nano - 1 WHERE id = $1", await dearest(tx)
                )
            (balance,) = await balances(found.database)
            assert (balance.unbilled_nano, balance.is_wrong) == (1, True)
            spread = allocate(lines, rest.pool_nano)
            assert sum(line.pool_nano for line in spread) == rest.pool_nano

    asyncio.run(main())


def test_what_a_caller_is_told_is_what_is_written(url: str) -> None:
    async def main() -> None:
        async with books(url, GatewaySettings(prices=PRICES)) as found:
            front = found.gateway.front(found.engine)
            deltas = [delta async for delta in front.generate(ask(3))]
            told = deltas[-1].usage
            assert told is not None
            headers = dict(pair for delta in deltas for pair in delta.headers)
            await found.gateway.close()
            (page,) = [page async for page in settlements(found.database, 0, FOREVER)]
            (row,) = page
            assert row["cost_nano"] == told.cost_nano == round(told.prompt_tokens * 100 + told.completion_tokens * 400)
            assert headers["x-headrace-cost-usd"] == f"{told.cost_nano / 1e9:.9f}".rstrip("0")
            assert row["engine_ns"] >= told.engine_ns > 0
            assert row["machine_nano"] is None

    asyncio.run(main())


def test_a_model_without_a_price_costs_null_not_nothing(url: str) -> None:
    async def main() -> None:
        async with books(url, GatewaySettings(usd_per_hour="1")) as found:
            told = await load(found, 3)
            assert {each.cost_nano for each in told} == {None}
            await found.gateway.close()
            (line,) = await usage(found.database, "model", 0, FOREVER)
            assert (line.charged_nano, line.unpriced, line.requests) == (0, 3, 3)
            assert line.machine_nano > 0

    asyncio.run(main())


def test_what_a_machine_of_unknown_cost_did_has_no_amount(
    url: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> tuple[UsageLine, PoolLine]:
        async with books(url, GatewaySettings(prices=PRICES)) as found:
            await load(found, 3)
            await found.engine.stop()
            await found.gateway.close()
            (line,) = await usage(found.database, "model", 0, FOREVER)
            return line, await pool(found.database, 0, FOREVER)

    line, rest = asyncio.run(main())
    assert caplog.text.count("set gateway.usd_per_hour") == 1
    assert (line.unrated, rest.unrated_ns) == (3, rest.total_ns)
    assert command(["ledger", "report", "--by", "model", "--database", url]) == 0
    shown = capsys.readouterr().out
    assert "unknown" in shown.splitlines()[1]
    assert f"{rest.total_ns / 1e9:,.3f} s of engines are in no amount" in shown
    assert command(["ledger", "report", "--by", "model", "--database", url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["lines"][0]["machine_nano"], told["lines"][0]["rent_nano"], told["pool"]["pool_nano"]) == (None,) * 3
    assert told["lines"][0]["charged_nano"] == line.charged_nano > 0
    assert command(["ledger", "verify", "--database", url]) == 0
    assert "have no bill (1 on machines of unknown cost" in capsys.readouterr().out


def test_days_are_days_and_periods_end_before_their_end(url: str) -> None:
    async def main() -> None:
        async with books(url, GatewaySettings(prices=PRICES)) as found:
            before_ns = time.time_ns()
            await load(found, 2)
            await found.gateway.close()
            (line,) = await usage(found.database, "day", 0, FOREVER)
            assert line.group in {time.strftime("%Y-%m-%d", time.gmtime(before_ns / 1e9 + s)) for s in (0, 20)}
            assert await usage(found.database, "day", 0, before_ns) == []

    asyncio.run(main())


def test_a_database_that_is_gone_keeps_spans_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with books(f"sqlite:///{tmp_path / 'accounts.db'}", GatewaySettings(usd_per_hour="1")) as found:
            recorder = found.gateway._recorder
            kept, recorder._database = recorder._database, _Gone(recorder._database)
            await load(found, 2)
            await recorder.write()
            assert "wait for the database" in caplog.text
            recorder._database = kept
            await recorder.write()
            (balance,) = await balances(found.database)
            assert balance.total_ns > 0
            assert balance.unexplained_ns == 0

    asyncio.run(main())


class _Gone:
    def __init__(self, database: Database) -> None:
        self.dialect = database.dialect

    async def run(self, work: object) -> None:
        from headrace.core.errors import StoreUnavailable

        raise StoreUnavailable("the database is gone")


def ended(index: int, engine_ns: int) -> RequestStats:
    return RequestStats(
        request_id=RequestId(f"r{index}"),
        model="m",
        prompt_tokens=1,
        completion_tokens=1,
        cached_tokens=0,
        finishes=(),
        arrival_s=0.0,
        first_scheduled_s=None,
        first_token_s=None,
        finished_s=0.0,
        num_preemptions=0,
        engine_ns=engine_ns,
    )


def test_spans_and_claims_bill_one_running_total() -> None:
    clock = {"time": EngineTime(total_ns=0)}
    account = EngineAccount("m", MachineRate(parse_usd("0.07"), "config"), lambda: clock["time"], lambda: 10**18)
    chance, billed, total, requests = random.Random(1), 0, 0, 0
    for index in range(500):
        idle, used = chance.randint(0, 10**6), chance.randint(0, 10**6)
        total, requests = total + idle + used, requests + used
        clock["time"] = EngineTime(total_ns=total, requests_ns=requests, idle_ns=total - requests)
        account.on_finished(ended(index, used))
        charge = account.claim(RequestId(f"r{index}"))
        assert charge is not None
        billed += charge.machine_nano or 0
        assert account.claim(RequestId(f"r{index}")) is None
        if index % 7 == 0:
            billed += account.span().pool_nano or 0
    billed += account.span().pool_nano or 0
    assert billed == cost_of_time(total, parse_usd("0.07"))


def test_time_that_nobody_claims_is_the_pools_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.gateway.ledger.engine_account._MOST_UNCLAIMED", 1)
    time_ns = EngineTime(total_ns=70, requests_ns=70)
    account = EngineAccount("m", MachineRate(parse_usd("3600"), "config"), lambda: time_ns, lambda: 10**18)
    for index, used in enumerate((30, 40)):
        account.on_finished(ended(index, used))
    assert account.claim(RequestId("r0")) is None
    span = account.span()
    assert (span.requests_ns, span.abandoned_ns, span.pool_nano) == (40, 30, 30)
    charge = account.claim(RequestId("r1"))
    assert charge is not None
    assert (charge.engine_ns, charge.machine_nano) == (40, 40)


def test_the_pool_goes_by_engine_time_and_to_nobody_if_nobody_used_any() -> None:
    def line(group: str, engine_ns: int) -> UsageLine:
        return UsageLine(group, 1, 0, 0, 0, 0, 0, engine_ns, 0, 0, 0)

    assert [each.pool_nano for each in allocate([line("a", 3), line("b", 1)], 101)] == [76, 25]
    assert [each.pool_nano for each in allocate([line("a", 0)], 101)] == [0]


@pytest.mark.parametrize(
    ("text", "nano"), [("0.35", 350_000_000), ("h100-sxm", 1_690_000_000), ("2 x h100-sxm", 3_380_000_000)]
)
def test_a_machine_costs_what_is_configured_or_quoted(text: str, nano: int) -> None:
    assert machine_rate(text).nano_per_hour == nano
