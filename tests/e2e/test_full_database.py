"""A database that is full, under a real server: hard budgets refuse, all else goes on, and no settled row is lost."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.gateway.budgets.registry import BudgetRegistry
from headrace.gateway.identity import Registry
from headrace.gateway.store import migrate, open_database
from tests.e2e.conftest import Server
from tests.e2e.test_killed_gateway import PRICE, SCRIPT, database, query, until

__all__ = ["database", "query"]  # fixtures

LEASE_S = 30.0
MAX_LATE = 20
LIMIT_NANO = 2 * 10**9
BOUNDED = f"from headrace.gateway.admission import authority\nauthority.MAX_LATE = {MAX_LATE}\n"
TABLES = ("settlements", "reservations", "spends", "paces", "audit_rows")
FILL = """
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
"""


class Disk:
    """Where a database is kept; it can be full. Of Postgres each write into a table of ours fails as on a full disk."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database = database
        self._flag = folder / "full"
        self.preload: list[str] = []
        if database.startswith("sqlite"):
            compiler = shutil.which("cc") or pytest.skip("no C compiler here; on Debian: apt-get install gcc")
            library = folder / "full_disk.so"
            source = Path(__file__).with_name("full_disk.c")
            subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
            self.preload = ["env", f"LD_PRELOAD={library}", f"FULL_DISK_FLAG={self._flag}"]

    def fill(self) -> None:
        self._flag.touch()
        triggers = [
            f"CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON {t} EXECUTE FUNCTION no_room();" for t in TABLES
        ]
        self._execute(FILL + "".join(triggers))

    def free(self) -> None:
        self._flag.unlink()
        self._execute("DROP FUNCTION no_room() CASCADE")

    def _execute(self, sql: str) -> None:
        if self.preload:
            return
        import asyncpg

        async def run() -> None:
            connection: Any = await asyncpg.connect(self.database)
            await connection.execute(sql)
            await connection.close()

        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, run()).result()


@pytest.fixture
def disk(database: str, tmp_path: Path) -> Disk:
    return Disk(database, tmp_path)


async def accounts(url: str) -> dict[str, str]:
    """Make a tenant with a hard budget and one with a soft one; return their keys."""
    database = open_database(url)
    await database.open()
    await migrate(database)
    keys = {}
    for tenant in ("hard", "soft"):
        await Registry(database).create_tenant(tenant)
        keys[tenant] = (await Registry(database).create_key(tenant)).text
        rules = BudgetRegistry(database)
        await rules.set(f"tenant:{tenant}", LIMIT_NANO, period="total", is_hard=tenant == "hard")
    await database.close()
    return keys


@pytest.fixture
def server(disk: Disk, keys: dict[str, str]) -> Iterator[Server]:
    command = [*disk.preload, sys.executable, "-c", BOUNDED + SCRIPT, disk.database, PRICE, str(LEASE_S)]
    started = Server(command)
    try:
        assert started.url, started.log
        yield started
        assert started.stop() in (0, -signal.SIGTERM)
    finally:
        started.stop()


@pytest.fixture
def keys(disk: Disk) -> dict[str, str]:
    return asyncio.run(accounts(disk.database))


class Callers:
    """A caller under a hard budget and one under a soft one, and which of their requests came to be answered."""

    def __init__(self, keys: dict[str, str], http: httpx.AsyncClient) -> None:
        self._http = http
        self._keys = keys
        self.begun: list[str] = []

    async def ask(self, whose: str, name: str, length: int = 5) -> httpx.Response:
        body = {"model": "echo", "prompt": "x" * length, "max_tokens": length}
        headers = {"authorization": f"Bearer {self._keys[whose]}", "x-request-id": name}
        reply = await self._http.post("/v1/completions", json=body, headers=headers)
        if reply.status_code == 200 or "was stopped" in reply.text:
            self.begun.append(f"cmpl-{name}-0")
        else:
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.elapsed.total_seconds() < 30
        return reply

    async def ask_many(self, whose: str, what: str, num: int) -> Counter[int]:
        replies = await asyncio.gather(*(self.ask(whose, f"{whose}-{what}-{number}") for number in range(num)))
        return Counter(reply.status_code for reply in replies)

    async def ask_until_refused(self, whose: str) -> None:
        for number in range(30):
            if (await self.ask_many(whose, f"on-{number}", 6))[503]:
                return
        raise AssertionError(f"{len(self.begun)} requests were taken on without a database")


def test_a_full_database_refuses_hard_budgets_and_loses_no_row(
    disk: Disk,
    keys: dict[str, str],
    server: Server,
    query: Callable[[str], list[Any]],
) -> None:
    async def scene() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as http:
            callers = Callers(keys, http)
            assert await callers.ask_many("hard", "before", 4) == {200: 4}
            assert await callers.ask_many("soft", "before", 4) == {200: 4}
            until(lambda: query("SELECT COUNT(*) FROM settlements") == [(8,)])
            long = [asyncio.ensure_future(callers.ask(whose, f"{whose}-long", 100)) for whose in ("hard", "soft")]
            async with asyncio.timeout(60):
                while len(query("SELECT id FROM reservations WHERE is_open = 1")) < 2:
                    if all(each.done() for each in long):
                        break
                    await asyncio.sleep(0.01)
            disk.fill()
            # The long ones too, where this process was held up for all their half a second.
            settled = query("SELECT id, cost_nano FROM settlements ORDER BY id")
            assert len(settled) in (8, 9, 10)
            # What was lent to the caller before is spent first; then nobody can vouch for more.
            await callers.ask_until_refused("hard")
            assert (await long[1]).status_code == 200
            await long[0]
            assert await callers.ask_many("hard", "later", 3) == {503: 3}
            assert await callers.ask_many("soft", "during", 6) == {200: 6}
            await callers.ask_until_refused("soft")  # as many settlements wait as may
            assert len(callers.begun) <= 8 + MAX_LATE + 12
            assert query("SELECT id, cost_nano FROM settlements ORDER BY id") == settled
            disk.free()
            until(lambda: query("SELECT COUNT(*) FROM settlements") == [(len(callers.begun),)])
            assert await callers.ask_many("hard", "after", 2) == {200: 2}
            assert set(settled) <= set(query("SELECT id, cost_nano FROM settlements"))
            return callers.begun

    begun = asyncio.run(scene())
    until(lambda: query("SELECT reserved_nano FROM spends") == [(0,), (0,)])
    rows = query("SELECT request_id, tenant, cost_nano FROM settlements")
    assert sorted(row[0] for row in rows) == sorted(begun)
    for spent_nano, account in query("SELECT spent_nano, id FROM spends"):
        tenant = "hard" if "tenant:hard" in account else "soft"
        assert spent_nano == sum(row[2] for row in rows if row[1] == tenant) <= LIMIT_NANO
    assert query("SELECT COUNT(*) FROM reservations WHERE is_open = 1") == [(0,)]
    assert "Traceback" not in server.log
