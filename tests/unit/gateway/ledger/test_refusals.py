"""Refused work is counted in rows without cost, whatever comes: a flood, a database that is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from headrace.core.caller import Caller
from headrace.core.clock import MonotonicClock
from headrace.core.errors import Overloaded, StoreUnavailable
from headrace.core.settings import GatewaySettings
from headrace.gateway import Gateway
from headrace.gateway.ledger import reasons, refusals, usage
from headrace.gateway.ledger.refusals import OTHERS, Refusals
from headrace.gateway.store import Database, open_database

FOREVER = 2**62


def test_a_flood_of_one_kind_is_one_row() -> None:
    counts = Refusals(5)
    for _ in range(100_000):
        counts.note("acme", "k1", "m", "overloaded")
    (row,) = counts.take(9)
    assert row[1:] == (5, 9, "acme", "k1", "m", "overloaded", 100_000)
    assert counts.take(12) == []


def test_kinds_beyond_the_bound_are_counted_together() -> None:
    counts = Refusals(0)
    for index in range(10_000):
        counts.note(f"t{index}", "k", "m", "overloaded")
    rows = counts.take(1)
    assert len(rows) == 4097
    assert sum(row.num for row in rows) == 10_000
    assert [row.num for row in rows if row.tenant == OTHERS] == [10_000 - 4096]


def test_what_could_not_be_written_is_counted_again() -> None:
    counts = Refusals(0)
    counts.note("a", "k", "m", "overloaded")
    counts.put_back(counts.take(7))
    counts.note("a", "k", "m", "overloaded")
    (row,) = counts.take(9)
    assert (row.from_ns, row.until_ns, row.num) == (0, 9, 2)


class _Gone:
    def __init__(self, database: Database) -> None:
        self.dialect = database.dialect

    async def run(self, work: object) -> None:
        raise StoreUnavailable("the database is gone")


def test_refusals_are_in_the_report_beside_what_was_served_and_survive_a_gap(url: str) -> None:
    async def main() -> None:
        gateway = Gateway(url, GatewaySettings(), MonotonicClock())
        await gateway.open()
        caller = Caller(tenant="acme", key_id="k1")
        for _ in range(3):
            gateway.note_refused(caller, "m", Overloaded("9 are waiting", retry_after_s=1.0))
        recorder = gateway._recorder
        kept, recorder._database = recorder._database, _Gone(recorder._database)  # type: ignore[assignment]
        await recorder.write()
        recorder._database = kept
        gateway.note_refused(Caller(), "", Overloaded("9 are waiting", retry_after_s=1.0))
        await gateway.close()
        database = open_database(url)
        await database.open()
        try:
            lines = {line.group: line for line in await usage(database, "tenant", 0, FOREVER)}
            assert (lines["acme"].refused, lines[""].refused) == (3, 1)
            assert (lines["acme"].requests, lines["acme"].charged_nano, lines["acme"].machine_nano) == (0, 0, 0)
            assert await reasons(database, 0, FOREVER) == {"overloaded": 4}
            assert [row["num"] async for page in refusals(database, 0, FOREVER) for row in page] == [3, 1]
            assert sum(line.refused for line in await usage(database, "day", 0, FOREVER)) == 4
        finally:
            await database.close()

    asyncio.run(main())


def test_two_lives_of_a_gateway_keep_their_own_rows(tmp_path: Path) -> None:
    async def main() -> None:
        url = f"sqlite:///{tmp_path / 'accounts.db'}"
        for _ in range(2):
            gateway = Gateway(url, GatewaySettings(), MonotonicClock())
            await gateway.open()
            gateway.note_refused(Caller(tenant="a"), "m", Overloaded("full", retry_after_s=1.0))
            await gateway.close()
        database = open_database(url)
        await database.open()
        assert await reasons(database, 0, FOREVER) == {"overloaded": 2}
        await database.close()

    asyncio.run(main())
