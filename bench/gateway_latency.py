"""What the gateway adds to a request: the real server before an instant upstream, beside the upstream alone.

    python bench/gateway_latency.py --out bench-results/gateway-latency.json [--database postgresql://…] [--wait 0.02]

Five ways to the same answer, measured in turn, in every round anew:
    direct           the load asks the upstream itself
    bare             a proxy of twenty lines with the same libraries, the floor of whatever is built on them
    proxy            `headrace serve` with that upstream, metrics, no database
    accounts         the same with a database: a key, three limits (requests, tokens, parallel) and two hard budgets,
                     all met by every request, the ledger and its digests
    accounts+audit   the same with the audit log, a row for every call (the default of a server with a database)
Each server is a process on one core, all on the same; load, upstream and Postgres have the others. The load is open:
arrivals are a Poisson process that does not wait for answers, the same moments for all ways of a round, and latency
counts from the moment a request was due. What is added is the difference of two ways within a round; told are the
median over the rounds and the least and most.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

BODY = json.dumps({"model": "echo", "prompt": "hello", "max_tokens": 5}).encode()
CONNECTIONS = 64
UPSTREAM = Path(__file__).with_name("instant_upstream.py")
BARE = Path(__file__).with_name("bare_proxy.py")
PERCENTILES = {"p50_ms": 0.50, "p90_ms": 0.90, "p99_ms": 0.99}
CONFIG = """
[server]
port = 0
[upstreams.instant]
url = "http://127.0.0.1:{port}/v1"
models = {{ echo = "echo" }}
max_parallel = 4096
[gateway.prices]
echo = "1/2"
[audit]
record = "{record}"
"""


async def prepare(url: str) -> str:
    """Make a tenant with a key, limits and budgets that never refuse; return the key."""
    from headrace.gateway.budgets.registry import BudgetRegistry
    from headrace.gateway.identity import Registry
    from headrace.gateway.limits import What
    from headrace.gateway.limits.registry import LimitRegistry
    from headrace.gateway.store import migrate, open_database

    database = open_database(url)
    await database.open()
    await migrate(database)
    registry, limits, budgets = Registry(database), LimitRegistry(database), BudgetRegistry(database)
    tenant = f"t{random.randrange(10**9)}"
    await registry.create_tenant(tenant)
    issued = await registry.create_key(tenant)
    await limits.set(f"tenant:{tenant}", What.REQUESTS, 10**9, per="minute")
    await limits.set(f"tenant:{tenant}", What.TOKENS, 10**11, per="minute")
    await limits.set(f"key:{issued.key.id}", What.PARALLEL, 10**6)
    await budgets.set(f"tenant:{tenant}", 10**15, period="month")
    await budgets.set(f"key:{issued.key.id}", 10**15, period="day")
    await database.close()
    return issued.text


@contextlib.contextmanager
def helper(*command: str) -> Iterator[int]:
    """Run a server that tells its port and ends with its standard input; yield the port."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def upstream(*options: str) -> contextlib.AbstractContextManager[int]:
    """Run the instant upstream; yield its port."""
    return helper(sys.executable, str(UPSTREAM), *options)


@contextlib.contextmanager
def gateway(port: int, folder: Path, database: str | None, record: str, core: str) -> Iterator[tuple[int, int]]:
    """Run `headrace serve` on one core before the upstream at `port`; yield its port and process id."""
    config = folder / "headrace.toml"
    config.write_text(CONFIG.format(port=port, record=record))
    command = ["taskset", "-c", core, sys.executable, "-m", "headrace", "serve", "--config", str(config)]
    command += ["--database", database] if database else []
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://[\d.]+:(\d+)", process.stdout.readline())
        assert found is not None, (folder / "server.log").read_text()
        yield int(found.group(1)), process.pid
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
        log.close()


class Client:
    """Keep-alive connections to one server, as little work as HTTP allows."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        head = [
            "POST /v1/completions HTTP/1.1", "host: x", "content-type: application/json",
            f"content-length: {len(BODY)}", *([f"authorization: Bearer {key}"] if key else []),
        ]  # fmt: skip
        self._request = "\r\n".join(head).encode() + b"\r\n\r\n" + BODY
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call(self) -> None:
        reader, writer = await self._connection()
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        self._idle.append((reader, writer))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # the server closes what nobody uses, while the other ways have their turn
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def arrivals(rate: float, seconds: float, seed: int) -> AsyncIterator[float]:
    """Yield the moments at which requests are due."""
    draw = random.Random(seed)
    due = time.perf_counter()
    end = due + seconds
    while (due := due + draw.expovariate(rate)) < end:
        pause = due - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        yield due


async def open_load(client: Client, rate: float, seconds: float, seed: int) -> list[float]:
    """Return latencies in seconds of a Poisson load."""
    latencies: list[float] = []

    async def one(due: float) -> None:
        await client.call()
        latencies.append(time.perf_counter() - due)

    tasks = [asyncio.ensure_future(one(due)) async for due in arrivals(rate, seconds, seed)]
    await asyncio.gather(*tasks)
    return latencies


async def closed_load(client: Client, seconds: float) -> float:
    """Return requests a second of CONNECTIONS clients that ask again at once."""
    count, end = 0, time.perf_counter() + seconds

    async def one() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await client.call()
            count += 1

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - start)


def percentile(values: list[float], share: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1e3, 3)


Round = dict[str, dict[str, float]]


async def measure(clients: dict[str, Client], args: argparse.Namespace) -> list[Round]:
    """Load every way in turn, `args.rounds` times, each time beginning with another."""
    for client in clients.values():
        await open_load(client, args.rate, 0.5, 0)
        await closed_load(client, 0.3)
    names = list(clients)
    rounds: list[Round] = []
    for number in range(1, args.rounds + 1):
        found: Round = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            latencies = await open_load(clients[name], args.rate, args.seconds, number)
            found[name] = {title: percentile(latencies, share) for title, share in PERCENTILES.items()}
            found[name]["closed_rps"] = round(await closed_load(clients[name], args.seconds / 4))
        rounds.append(found)
    return rounds


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "least": min(values), "most": max(values)}


def added(rounds: list[Round], way: str, to: str) -> dict[str, dict[str, float]]:
    return {title: spread([round(one[way][title] - one[to][title], 3) for one in rounds]) for title in PERCENTILES}


def summary(rounds: list[Round]) -> dict[str, object]:
    """Sum up the rounds by way."""
    ways: dict[str, object] = {}
    for way in rounds[0]:
        told: dict[str, object] = {title: spread([one[way][title] for one in rounds]) for title in rounds[0][way]}
        if way != "direct":
            told["added_to_direct"] = added(rounds, way, "direct")
        if way.startswith("accounts"):
            told["added_to_proxy"] = added(rounds, way, "proxy")
        ways[way] = told
    return ways


def run(args: argparse.Namespace) -> dict[str, object]:
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(upstream("--wait", str(args.wait)))
        url = f"http://127.0.0.1:{port}/v1/completions"
        bare = stack.enter_context(helper("taskset", "-c", args.core, sys.executable, str(BARE), url))
        clients = {"direct": Client(port, ""), "bare": Client(bare, "")}
        for name, record in (("proxy", "none"), ("accounts", "none"), ("accounts+audit", "all")):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            database, key = None, ""
            if name != "proxy":
                database = args.database or f"sqlite:///{folder / 'accounts.db'}"
                key = asyncio.run(prepare(database))
            front, _ = stack.enter_context(gateway(port, folder, database, record, args.core))
            clients[name] = Client(front, key)
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            rounds = runner.run(measure(clients, args))
            for client in clients.values():
                client.close()
    return {
        "database": "postgres" if args.database else "sqlite",
        "rate_rps": args.rate,
        "seconds": args.seconds,
        "upstream_wait_s": args.wait,
        "cores_of_the_server": 1,
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "ways": summary(rounds),
        "rounds": rounds,
    }


def show(result: dict[str, object]) -> None:
    """Print the ways as a table: medians, and least to most."""
    ways: dict[str, dict[str, dict[str, dict[str, float]]]] = result["ways"]  # type: ignore[assignment]
    for way, told in ways.items():
        print(f"{way:15s} p50 {told['p50_ms']['median']} ms  p99 {told['p99_ms']['median']} ms", end="  ")
        print(f"closed loop {told['closed_rps']['median']} requests/s")
        for to in ("direct", "proxy"):
            for title, one in told.get(f"added_to_{to}", {}).items():
                print(f"    added to {to} {title:6s} {one['median']:7.3f}  ({one['least']} to {one['most']})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second (default: 300)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of open load for each way and round (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--core", default="0", help="where the servers run (default: 0)")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that the upstream takes (default: 0)")
    parser.add_argument("--database", help="an empty one; default: new SQLite files")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(os.sched_getaffinity(0)) - {int(args.core)} or os.sched_getaffinity(0))
    result = run(args)
    show(result)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
