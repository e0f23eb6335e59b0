"""What keys, limits and budgets add to a request: the same server with and without them, against an instant upstream.

    python bench/gateway_latency.py --out bench-results/gateway-latency.json [--database postgresql://…]

The server is a process of its own on one core, the API over an upstream that echoes. The load is open: arrivals are a
Poisson process that does not wait for answers, and latency counts from the moment a request was due.
With: a key, three limits (requests, tokens, parallel) and two hard budgets, all on the same accounts, the worst case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

BODY = json.dumps({"model": "echo", "prompt": "hello", "max_tokens": 5}).encode()
CONNECTIONS = 64


async def serve(database: str | None, gap_s: float = 0.0) -> None:
    """Serve until the input closes; print the port and, with a database, the key. `gap_s`: between tokens."""
    import uvicorn

    from headrace.api import ApiState, Models, ServedModel, SharedKey, build_app
    from headrace.app.listening import bind
    from headrace.core.clock import MonotonicClock
    from headrace.core.gateway_settings import GatewaySettings
    from headrace.core.settings import ServerSettings
    from headrace.gateway import Gateway
    from headrace.testing import ByteTokenizer, EchoUpstream

    class Slow(EchoUpstream):
        async def generate(self, request: Any) -> AsyncIterator[Any]:
            async for delta in super().generate(request):
                await asyncio.sleep(gap_s)
                yield delta

    tokenizer: Any = ByteTokenizer()
    clock = MonotonicClock()
    upstream = Slow(tokenizer) if gap_s else EchoUpstream(tokenizer)
    model = ServedModel(
        name="echo", root="file:echo", upstream=upstream, tokenizer=tokenizer, template=None,
        max_context=4096, created=0,
    )  # fmt: skip
    gateway, key = None, ""
    if database is not None:
        key = await prepare(database)
        gateway = Gateway(database, GatewaySettings(prices={"echo": "1/2"}), clock)
        await gateway.open()
    state: Any = {"health": None, "render": lambda: (b"", "text/plain"), "wall_s": time.time, "version": "0"}
    app = build_app(
        ApiState(
            models=Models([model]) if gateway is None else Models([model], front=gateway.front),
            gatekeeper=SharedKey(None) if gateway is None else gateway.gatekeeper,
            clock=clock, max_body_bytes=10**6, **state,
        )
    )  # fmt: skip
    sock = bind(ServerSettings(port=0))
    config = uvicorn.Config(app, http="httptools", ws="none", loop="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.001)
    print(json.dumps({"port": sock.getsockname()[1], "key": key}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.should_exit = True
    await serving
    usage = os.times()
    if gateway is not None:
        await gateway.close()
        print(json.dumps({"cpu_s": usage.user + usage.system, "batches": gateway.stats().batches}), flush=True)
    else:
        print(json.dumps({"cpu_s": usage.user + usage.system}), flush=True)


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
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        self._idle.append((reader, writer))

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def arrivals(rate: float, seconds: float) -> AsyncIterator[float]:
    """Yield the moments at which requests are due."""
    draw = random.Random(1)
    due = time.perf_counter()
    end = due + seconds
    while (due := due + draw.expovariate(rate)) < end:
        pause = due - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        yield due


async def open_load(client: Client, rate: float, seconds: float) -> list[float]:
    """Return latencies in seconds of a Poisson load."""
    latencies: list[float] = []

    async def one(due: float) -> None:
        await client.call()
        latencies.append(time.perf_counter() - due)

    tasks = [asyncio.ensure_future(one(due)) async for due in arrivals(rate, seconds)]
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
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1e3


async def measure(database: str | None, cores: str, rate: float, seconds: float) -> dict[str, float]:
    """Start a server, load it, stop it."""
    command = ["taskset", "-c", cores, sys.executable, __file__, "--serve", *([database] if database else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    client = Client(told["port"], told["key"])
    await open_load(client, rate, 1.0)
    latencies = await open_load(client, rate, seconds)
    throughput = await closed_load(client, seconds / 4)
    client.close()
    process.stdin.close()
    last = json.loads(process.stdout.readline())
    process.wait()
    process.stdout.close()
    return {
        "requests": len(latencies),
        "p50_ms": round(percentile(latencies, 0.50), 3),
        "p90_ms": round(percentile(latencies, 0.90), 3),
        "p99_ms": round(percentile(latencies, 0.99), 3),
        "closed_rps": round(throughput),
        **last,
    }


async def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measure without and with, in turn, and give the best of each by its p99."""
    rounds: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            rounds["without"].append(await measure(None, args.core, args.rate, args.seconds))
            database = args.database or f"sqlite:///{Path(folder) / f'{number}.db'}"
            rounds["with"].append(await measure(database, args.core, args.rate, args.seconds))
    best = {name: min(found, key=lambda one: one["p99_ms"]) for name, found in rounds.items()}
    added = {
        f"added_{name}": round(best["with"][name] - best["without"][name], 3) for name in ("p50_ms", "p90_ms", "p99_ms")
    }
    return {
        "database": "postgres" if args.database else "sqlite",
        "rate_rps": args.rate,
        "seconds": args.seconds,
        "cores_of_the_server": 1,
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **added,
        "without": best["without"],
        "with": best["with"],
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", nargs="?", const="", help=argparse.SUPPRESS)
    parser.add_argument("--gap", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second (default: 300)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of the open load (default: 6)")
    parser.add_argument("--rounds", type=int, default=2, help="of each, in turn (default: 2)")
    parser.add_argument("--core", default="0", help="where the server runs (default: 0)")
    parser.add_argument("--database", help="default: a new SQLite file")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    if args.serve is not None:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(args.serve or None, args.gap))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(os.sched_getaffinity(0)) - {int(args.core)} or os.sched_getaffinity(0))
    result = asyncio.run(compare(args))
    text = json.dumps(result, indent=2)
    print(json.dumps({k: v for k, v in result.items() if k != "rounds"}, indent=2))
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
