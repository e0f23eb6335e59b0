"""What the audit reads is what was written, on both databases."""

from __future__ import annotations

import asyncio
import time

from headrace.core.settings import GatewaySettings
from headrace.gateway.ledger.stack_rows import read_ledger
from tests.unit.gateway.ledger.test_ledger import books, load


def test_a_ledger_is_read_as_it_was_written_by_page_and_by_filter(url: str) -> None:
    async def main() -> None:
        async with books(url, GatewaySettings(usd_per_hour="3.30")) as found:
            await load(found, 9)
            await found.gateway.close()
            now = time.time_ns()
            ledger = await read_ledger(found.database, 0, now + 10**9, page_rows=4)
            assert len(ledger.requests) == 9
            assert {row.engine for row in ledger.requests} == {span.engine for span in ledger.spans}
            assert sum(row.engine_ns for row in ledger.requests) == sum(span.requests_ns for span in ledger.spans)
            assert [row.settled_ns for row in ledger.requests] == sorted(row.settled_ns for row in ledger.requests)
            part = await read_ledger(found.database, 0, now + 10**9, tenant="a")
            (engine,) = part.others_ns
            assert part.others_ns[engine] + sum(row.engine_ns for row in part.requests) == sum(
                row.engine_ns for row in ledger.requests
            )
            assert {row.tenant for row in part.requests} == {"a"}

    asyncio.run(main())
