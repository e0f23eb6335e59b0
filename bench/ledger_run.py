"""Does the ledger add up after a long mixed run: a real server, tenants, and callers that do everything wrong.

    python bench/ledger_run.py MODEL [MODEL …] [--seconds 600] [--scarce] [--database URL] [--out ledger-run.json]

Starts `headrace serve` with a KV pool that is too small for its load, so that sequences are preempted, and keeps a
fixed number of callers of four tenants busy: answers read to their end, streamed and not, with one and two choices,
calls whose caller goes away, calls ended by their id, streams resumed after a cut, and requests that are refused: no
JSON, unknown models, prompts and numbers out of range, wrong keys, an exhausted budget. Then the server is stopped and
the ledger is read by the command line. With `--scarce` most callers ask for background work (`service_tier` "flex") in
a pool that has room for a few answers, and the others come now and then: each of them preempts some of that work. Such
a run fails with fewer than one preemption in two seconds.

Exact or it fails: tenants + pool = the engines' wall time to the nanosecond = the bill to the nano-dollar, and what
each caller was told is what its row says.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from headrace.econ import cost_of_time, parse_usd

RATE = "3.30"
NUM_CALLERS = 24
TENANTS = ("acme", "bolt", "cask", "poor")
_SHOWN = ("requests", "engine_ns", "rent_ns", "machine_nano", "rent_nano")
LENGTHS = (4, 16, 64, 256)
BACKGROUND_LENGTHS = (60, 120, 240)
NUM_EARLY = 6  # callers that preempt background work in a scarce run
SCARCE_S = 2  # seconds for each preemption, at most
TASKS = ("read", "read", "stream", "stream", "stream", "two", "leave", "leave", "cancel", "resume", "wrong")


@dataclass(slots=True)
class Seen:
    """What the callers did and were told."""

    done: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    costs: dict[str, str] = field(default_factory=dict)  # what a request's caller was told, in dollars
    failures: list[str] = field(default_factory=list)


class Caller:
    """One caller after another of one tenant."""

    def __init__(
        self, url: str, key: str, models: list[str], seed: int, seen: Seen, *, is_scarce: bool = False
    ) -> None:
        self._is_background = is_scarce and seed >= NUM_EARLY
        self._pause_s = 1.0 if is_scarce and not self._is_background else 0.05
        self._url, self._key, self._models, self._seen = url, key, models, seen
        self._chance = random.Random(seed)
        self._name = f"run-{seed}"
        self._number = 0

    async def call_until(self, end_s: float) -> None:
        """Call until the time is over; a failure of the run itself is kept, not raised."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
            while time.perf_counter() < end_s:
                task = self._chance.choice(TASKS)
                self._number += 1
                try:
                    await getattr(self, f"_{task}")(session, f"{self._name}-{self._number}")
                    self._seen.done[task] += 1
                    await asyncio.sleep(self._pause_s)  # who is refused asks again, but not at once
                except Exception as err:
                    self._seen.failures.append(f"{task}: {type(err).__name__}: {err}"[:200])

    def _body(self, **fields: object) -> dict[str, Any]:
        chance = self._chance
        shared = "The old mill stood by the river, and every morning " * chance.choice((1, 4, 12))
        if self._is_background:
            fields["service_tier"] = "flex"
        return {
            "model": chance.choice(self._models),
            "prompt": shared + str(chance.randrange(40)),
            "max_tokens": chance.choice(BACKGROUND_LENGTHS if self._is_background else LENGTHS),
            "ignore_eos": True,
            **fields,
        }

    def _post(self, session: aiohttp.ClientSession, request_id: str, body: object, **headers: str) -> Any:
        sent = {"authorization": f"Bearer {self._key}", "x-request-id": request_id, **headers}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return session.post(
            f"{self._url}/v1/completions", data=data, headers={"content-type": "application/json", **sent}
        )

    async def _take(self, reply: aiohttp.ClientResponse, request_id: str) -> None:
        """Read an answer that is not streamed; keep what it says of its cost."""
        self._seen.statuses[str(reply.status)] += 1
        answer = await reply.json()
        if reply.status == 200:
            assert answer["usage"]["cost"] == float(reply.headers["x-headrace-cost-usd"])
            self._seen.costs[request_id] = reply.headers["x-headrace-cost-usd"]

    async def _read(self, session: aiohttp.ClientSession, request_id: str) -> None:
        async with self._post(session, request_id, self._body()) as reply:
            await self._take(reply, request_id)

    async def _two(self, session: aiohttp.ClientSession, request_id: str) -> None:
        async with self._post(session, request_id, self._body(n=2, temperature=0.9)) as reply:
            await self._take(reply, request_id)

    async def _stream(self, session: aiohttp.ClientSession, request_id: str) -> None:
        body = self._body(stream=True, stream_options={"include_usage": True})
        async with self._post(session, request_id, body) as reply:
            self._seen.statuses[str(reply.status)] += 1
            if reply.status == 200:
                await self._events(reply, request_id, 10**9)

    async def _events(self, reply: aiohttp.ClientResponse, request_id: str, most: int) -> str:
        """Read a stream, `most` events of it; keep what it says of its cost; return the last event's id."""
        last_id = ""
        async for line in reply.content:
            if line.startswith(b"id:"):
                last_id = line[3:].strip().decode()
            if line.startswith(b"data: {"):
                usage = json.loads(line[6:]).get("usage")
                if usage is not None:
                    self._seen.costs[request_id] = str(usage["cost"])
                most -= 1
                if not most:
                    break
        return last_id

    async def _leave(self, session: aiohttp.ClientSession, request_id: str) -> None:
        """Go away in the middle: before the first token, or after a few."""
        call = asyncio.ensure_future(self._stream(session, request_id))
        await asyncio.sleep(self._chance.choice((0.0, 0.01, 0.1, 0.5, 1.5)))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    async def _cancel(self, session: aiohttp.ClientSession, request_id: str) -> None:
        call = asyncio.ensure_future(self._stream(session, request_id))
        await asyncio.sleep(self._chance.choice((0.05, 0.3, 1.0)))
        path, headers = f"{self._url}/v1/requests/{request_id}", {"authorization": f"Bearer {self._key}"}
        async with session.delete(path, headers=headers) as reply:
            assert reply.status in (200, 404), reply.status
        await call

    async def _resume(self, session: aiohttp.ClientSession, request_id: str) -> None:
        """Lose a stream that goes on without its reader, and read the rest of it."""
        body = self._body(stream=True, stream_options={"include_usage": True})
        headers = {"x-resume-grace": "20"}
        async with self._post(session, request_id, body, **headers) as reply:
            self._seen.statuses[str(reply.status)] += 1
            if reply.status != 200:
                return
            last_id = await self._events(reply, request_id, 3)
            reply.close()
        headers = {"authorization": f"Bearer {self._key}", "last-event-id": last_id}
        async with session.get(f"{self._url}/v1/requests/{request_id}/events", headers=headers) as reply:
            assert reply.status in (200, 204), reply.status
            await self._events(reply, request_id, 10**9)

    async def _wrong(self, session: aiohttp.ClientSession, request_id: str) -> None:
        body: object = self._chance.choice(
            (
                b"{not json",
                self._body(model="no-such-model"),
                self._body(max_tokens=0),
                self._body(temperature=-1),
                self._body(prompt="word " * 20_000),
                self._body(no_such_field=1),
            )
        )
        key = {} if self._chance.random() < 0.8 else {"authorization": "Bearer hr-wrong-key"}
        async with self._post(session, request_id, body, **key) as reply:
            self._seen.statuses[str(reply.status)] += 1
            assert 400 <= reply.status < 500, (reply.status, await reply.text())


def command_line(*args: str) -> Any:
    """Return what a command of ours writes as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "headrace", *args, "--json"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def prepare(database: str, price: str) -> dict[str, str]:
    """Make the tenants; return their keys. One of them has money for a few requests only."""
    keys: dict[str, str] = {}
    for tenant in TENANTS:
        command_line("tenants", "create", tenant, "--database", database)
        keys[tenant] = command_line("keys", "create", tenant, "--database", database)["key"]
    command_line("budgets", "set", "tenant:*", "100000", "--database", database)
    command_line("budgets", "set", "tenant:poor", "0.0005", "--period", "total", "--database", database)
    command_line("limits", "set", "tenant:bolt", "parallel", "6", "--database", database)
    return keys


def read_ledger(database: str, models: list[str], seen: Seen, folder: Path) -> dict[str, Any]:
    """Read the ledger and check it against the machine's rate and what the callers were told."""
    verified = command_line("ledger", "verify", "--database", database)
    report = command_line("ledger", "report", "--by", "tenant", "--database", database)
    rows_file = folder / "rows.csv"
    subprocess.run(
        [sys.executable, "-m", "headrace", "ledger", "export", str(rows_file), "--database", database],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with rows_file.open(encoding="utf-8") as file:
        # `cmpl-ID-0`: the first prompt of the call
        rows = {row["request_id"].removeprefix("cmpl-").rpartition("-")[0]: row for row in csv.DictReader(file)}
    rest, lines = report["pool"], report["lines"]
    pool_ns = rest["loading_ns"] + rest["recomputed_ns"] + rest["abandoned_ns"] + rest["idle_ns"]
    pool_ns += rest["cached_ns"]
    tenants_ns = sum(line["engine_ns"] for line in lines)
    bill_nano = sum(line["machine_nano"] for line in lines) + rest["pool_nano"]
    engines = verified["engines"]
    expected_nano = sum(cost_of_time(engine["total_ns"], parse_usd(RATE)) for engine in engines)
    differing = [
        request_id
        for request_id, told in seen.costs.items()
        if request_id not in rows or round(float(told) * 1e9) != int(rows[request_id]["cost_nano"])
    ]
    return {
        "models": models,
        "outcomes": dict(Counter(row["outcome"] for row in rows.values())),
        "settled": len(rows),
        "preempted_requests": sum(int(row["num_preemptions"]) > 0 for row in rows.values()),
        "preemptions": sum(int(row["num_preemptions"]) for row in rows.values()),
        "tenants": {line["group"]: {name: line[name] for name in _SHOWN} for line in lines},
        "pool": rest,
        "tenants_ns": tenants_ns,
        "pool_ns": pool_ns,
        "wall_ns": rest["total_ns"],
        "difference_ns": rest["total_ns"] - tenants_ns - pool_ns,
        "bill_nano": bill_nano,
        "expected_nano": expected_nano,
        "difference_nano": expected_nano - bill_nano,
        "told_costs": len(seen.costs),
        "told_costs_that_differ": len(differing),
        "verify": verified,
    }


async def load(
    url: str, keys: dict[str, str], models: list[str], seconds: float, seen: Seen, *, is_scarce: bool
) -> None:
    end_s = time.perf_counter() + seconds
    callers = [
        Caller(url, keys[TENANTS[seed % len(TENANTS)]], models, seed, seen, is_scarce=is_scarce)
        for seed in range(NUM_CALLERS)
    ]
    await asyncio.gather(*(caller.call_until(end_s) for caller in callers))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the server and its callers, then read the ledger."""
    database = args.database or f"sqlite:///{folder / 'accounts.db'}"
    keys = prepare(database, args.price)
    names = [Path(model).stem for model in args.model]
    config = folder / "headrace.toml"
    prices = "\n".join(f'"{name}" = "{args.price}"' for name in names)
    config.write_text(f"[gateway.prices]\n{prices}\n")
    command = [
        *(sys.executable, "-m", "headrace", "serve", *args.model, "--config", str(config)),
        *("--port", "0", "--database", database, "--usd-per-hour", RATE, "--kv-memory-mib", str(args.kv_mib)),
        *("--max-num-seqs", "16", "--max-context", "1024", "--ledger-s", "20", "--output-ratio", "0.02", *args.serve),
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(folder / "log").open("w"), text=True)
    assert server.stdout is not None
    try:
        found = None
        while found is None:
            line = server.stdout.readline()
            if not line:
                raise SystemExit(f"the server did not start:\n{(folder / 'log').read_text()[-2000:]}")
            found = re.search(r"http://\S+:\d+", line)
        seen, began_s = Seen(), time.perf_counter()
        asyncio.run(load(found[0], keys, names, args.seconds, seen, is_scarce=args.scarce))
        load_s = time.perf_counter() - began_s
        server.terminate()
        status = server.wait(timeout=120)
    finally:
        if server.poll() is None:
            server.kill()
        server.stdout.close()
    return {
        "seconds": round(load_s, 1),
        "callers": NUM_CALLERS,
        "kv_memory_mib": args.kv_mib,
        "exit_status": status,
        "calls": dict(sorted(seen.done.items())),
        "statuses": dict(sorted(seen.statuses.items())),
        "failures": seen.failures[:20],
        "database": database.partition(":")[0],
        **read_ledger(database, names, seen, folder),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", help="what `headrace serve` takes")
    parser.add_argument("--seconds", type=float, default=600.0, help="of load (default: 600)")
    parser.add_argument("--kv-mib", type=int, default=16, help="of the KV pool of each model (default: 16)")
    parser.add_argument("--scarce", action="store_true", help="foreground work preempts background work all the time")
    parser.add_argument("--price", default="0.05/0.20/0.005", help="dollars per million tokens")
    parser.add_argument("--database", help="default: a new SQLite file")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="further flags of the server")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    text = json.dumps(result, indent=2)
    if args.out is not None:
        args.out.write_text(text + "\n")
    print(text)
    is_exact = not (result["difference_ns"] or result["difference_nano"] or result["told_costs_that_differ"])
    if args.scarce and result["preemptions"] * SCARCE_S < result["seconds"]:
        print(f"only {result['preemptions']} preemptions: give a smaller --kv-mib", file=sys.stderr)
        sys.exit(1)
    sys.exit(0 if is_exact and result["verify"]["is_right"] and not result["failures"] else 1)


if __name__ == "__main__":
    main()
