"""A gateway that is killed under load: no settled row is lost, what was reserved comes back, no budget is passed."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Server, until
from tests.e2e.test_accounts import headrace
from tests.postgres import new_schema

LEASE_S = 1
PRICE = "1000/1000"  # a thousandth of a dollar a token

# The whole server but the engine: an upstream that writes a token every five milliseconds.
SCRIPT = """
import asyncio, sys, time
import uvicorn
from headrace.api import ApiState, Models, ServedModel, build_app
from headrace.app.listening import bind, url_of
from headrace.core.clock import MonotonicClock
from headrace.core.gateway_settings import GatewaySettings
from headrace.core.settings import ServerSettings
from headrace.gateway import Gateway
from headrace.obs import configure_logging
from headrace.testing import ByteTokenizer, EchoUpstream

class Slow:
    def __init__(self, inner):
        self.inner = inner

    async def generate(self, request):
        async for delta in self.inner.generate(request):
            await asyncio.sleep(0.005)
            yield delta

async def main():
    configure_logging("debug")
    settings = GatewaySettings(prices={"echo": sys.argv[2]}, lease_s=float(sys.argv[3]))
    gateway = Gateway(sys.argv[1], settings, MonotonicClock())
    await gateway.open()
    tokenizer = ByteTokenizer()
    model = ServedModel(name="echo", root="file:echo", upstream=Slow(EchoUpstream(tokenizer)), tokenizer=tokenizer,
                        template=None, max_context=4096, created=0)
    state = ApiState(models=Models([model], front=gateway.front), clock=MonotonicClock(), wall_s=time.time, health=None,
                     render=lambda: (b"", ""), version="0", max_body_bytes=10**6, gatekeeper=gateway.gatekeeper,
                     auditor=gateway.auditor)
    sock = bind(ServerSettings(port=0))
    config = uvicorn.Config(build_app(state), lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.001)
    print("Serving echo at", url_of(sock), flush=True)
    await serving
    await gateway.close()

asyncio.run(main())
"""


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'accounts.db'}"
    return new_schema(request.getfixturevalue("postgres_url"))


@contextmanager
def started(database: str) -> Iterator[Server]:
    server = Server([sys.executable, "-c", SCRIPT, database, PRICE, str(LEASE_S)])
    try:
        assert server.url, server.log
        yield server
    finally:
        server.stop()


@pytest.fixture
def query(database: str) -> Iterator[Callable[[str], list[Any]]]:
    """Read the database from outside, as an auditor would."""
    if database.startswith("sqlite"):
        connection = sqlite3.connect(database.removeprefix("sqlite:///"))
        yield lambda sql: connection.execute(sql).fetchall()
        connection.close()
        return
    import asyncpg

    async def fetch(sql: str) -> list[Any]:
        opened: Any = await asyncpg.connect(database)
        try:
            return [tuple(row) for row in await opened.fetch(sql)]
        finally:
            await opened.close()

    with ThreadPoolExecutor(1) as thread:  # the load has an event loop of its own
        yield lambda sql: thread.submit(asyncio.run, fetch(sql)).result()


def load(url: str, key: str, is_enough: Callable[[], bool]) -> None:
    """Keep a dozen requests under way until the server goes down; some clients leave half way.

    One asks for ten seconds of text: however slow the machine, something is reserved when the server dies.
    """

    async def client(number: int) -> None:
        headers = {"authorization": f"Bearer {key}", "x-headrace-tenant": "other"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=60) as http:
            while not is_enough():
                length = 2000 if number == 1 else 20
                body = {"model": "echo", "prompt": "x" * length, "max_tokens": length, "stream": number % 2 == 0}
                try:
                    async with http.stream("POST", "/v1/completions", json=body) as reply:
                        async for _ in reply.aiter_bytes():
                            if number % 5 == 0:
                                break
                except httpx.HTTPError:
                    return

    async def all_of_them() -> None:
        await asyncio.gather(*(client(number) for number in range(12)))

    asyncio.run(all_of_them())


def test_kill_9_loses_no_settled_row_and_gives_reservations_back(
    database: str, query: Callable[[str], list[Any]]
) -> None:
    headrace(database, "tenants", "create", "acme")
    key = headrace(database, "keys", "create", "acme")["key"]
    headrace(database, "budgets", "set", "tenant:acme", "10", "--period", "total")
    seen: dict[str, Any] = {}
    audited: dict[int, str] = {}

    with started(database) as server:

        def enough() -> bool:
            """Once there is enough to lose, note what is settled and kill, all between two requests of a client."""
            if not seen:
                rows = dict(query("SELECT id, cost_nano FROM settlements"))
                log = dict(query("SELECT seq, digest FROM audit_rows"))
                if len(rows) >= 20 and len(log) > 10:
                    seen.update(rows)
                    audited.update(log)
                    server.process.send_signal(signal.SIGKILL)
            return bool(seen)

        load(server.url, key, enough)
        server.wait()
    if not database.startswith("sqlite"):
        # The database ends what it had been asked for before it hears that nobody waits for it.
        others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        until(lambda: query(f"SELECT COUNT(*) {others}") == [(0,)])
    left = dict(query("SELECT id, cost_nano FROM settlements"))
    assert {name: left.get(name) for name in seen} == seen
    assert audited.items() <= dict(query("SELECT seq, digest FROM audit_rows")).items()
    ((spent, reserved),) = query("SELECT spent_nano, reserved_nano FROM spends")
    assert spent == sum(left.values())
    ((num_open, held),) = query("SELECT COUNT(*), COALESCE(SUM(granted_nano), 0) FROM reservations WHERE is_open = 1")
    assert num_open > 0
    assert reserved == held
    with started(database) as again:
        until(lambda: query("SELECT reserved_nano FROM spends") == [(0,)])
        ((spent_now,),) = query("SELECT spent_nano FROM spends")
        assert 10_000_000_000 >= spent_now == query("SELECT SUM(cost_nano) FROM settlements")[0][0] >= spent
        reply = httpx.post(
            again.url + "/v1/completions", json={"model": "echo", "prompt": "hello", "max_tokens": 5},
            headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=60,
        )  # fmt: skip
        assert reply.status_code == 200
        assert again.stop() in (0, -signal.SIGTERM)
    verdict = headrace(database, "audit", "verify")
    assert (verdict["problem"], verdict["rows"] > len(audited)) == (None, True)
    secret = key.rpartition("-")[2]
    assert secret not in server.log + again.log + str(query("SELECT * FROM audit_rows"))
    assert "x" * 20 not in server.log  # nor content
