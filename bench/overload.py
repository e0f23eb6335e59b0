"""A real server at three times its capacity: what is let in keeps its promise, the rest is told so at once.

    python bench/overload.py [--model MODEL] [--seconds 60] [--times 3] [--max-wait-s 2] [--out FILE]

Starts `headrace serve`, finds its capacity with a closed loop of as many clients as it has places, then sends Poisson
arrivals at a multiple of it, each on a connection of its own, and at last one request at a time until the first token
comes as fast as before the load. Figures:

    goodput   answers whose first token came within the SLO, per second, over the capacity found by the closed loop
    on_time   share of the answers let in that kept the SLO: `max_wait_s` and half as much again
    refused   milliseconds until a 429 was there, as the client saw it
    memory    resident MiB of the server before, at most and after
    recovery  seconds after the last arrival until a new request is served as if nothing had been
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import uvloop

from headrace.bench.client import stream_request
from headrace.bench.load import make_prompt
from headrace.bench.metrics import RequestLog, distribution, summarize

NUM_PLACES = 32
PROMPT_WORDS, OUTPUT_TOKENS = 64, 32


def body(seed: int) -> dict[str, object]:
    return {
        "prompt": make_prompt(PROMPT_WORDS, seed),
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def send(url: str, seed: int) -> RequestLog:
    return await stream_request(f"{url}/v1/completions", body(seed), timeout_s=60.0)


async def closed_loop(url: str, num_clients: int, seconds: float, seed: int) -> list[RequestLog]:
    logs: list[RequestLog] = []
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        k = 0
        while time.perf_counter() < end:
            logs.append(await send(url, seed + number * 10_000 + k))
            k += 1

    await asyncio.gather(*(client(number) for number in range(num_clients)))
    return logs


async def open_loop(url: str, rate: float, seconds: float, seed: int) -> list[RequestLog]:
    rng, tasks = random.Random(seed), []
    due = began = time.perf_counter()
    while due < began + seconds:
        await asyncio.sleep(max(due - time.perf_counter(), 0.0))
        tasks.append(asyncio.create_task(send(url, seed + len(tasks))))
        due += rng.expovariate(rate)
    return list(await asyncio.gather(*tasks))


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def watch_memory(pid: int, samples: list[float]) -> None:
    while True:
        samples.append(resident_mib(pid))
        await asyncio.sleep(0.5)


async def recover(url: str, usual_s: float) -> float:
    """Return the seconds until a first token comes within twice its usual time and 50 ms."""
    began = time.perf_counter()
    for seed in range(900_000, 900_200):
        log = await send(url, seed)
        if log.error is None and log.content_s[0] - log.sent_s <= 2 * usual_s + 0.05:
            return log.sent_s - began
    return time.perf_counter() - began


async def measure(url: str, pid: int, args: argparse.Namespace) -> dict[str, object]:
    await closed_loop(url, NUM_PLACES, 3.0, 1)  # the step model learns, pages are touched
    quiet = await closed_loop(url, 1, 2.0, 200_000)
    usual_s = sorted(log.content_s[0] - log.sent_s for log in quiet)[len(quiet) // 2]
    capacity = summarize(await closed_loop(url, NUM_PLACES, 8.0, 300_000)).requests_per_s
    memory = [resident_mib(pid)]
    watcher = asyncio.create_task(watch_memory(pid, memory))
    rate = args.times * capacity
    began = time.perf_counter()
    logs = await open_loop(url, rate, args.seconds, 600_000)
    recovery_s = await recover(url, usual_s)
    watcher.cancel()
    refused = [log for log in logs if log.error is not None and "HTTP 429" in log.error]
    admitted = [log for log in logs if log.error is None]
    slo_s = 1.5 * args.max_wait_s
    on_time = [log for log in admitted if log.content_s[0] - log.sent_s <= slo_s]
    duration_s = max(log.done_s for log in logs) - began
    return {
        "capacity_rps": round(capacity, 2),
        "sent_rps": round(len(logs) / args.seconds, 2),
        "sent": len(logs),
        "admitted": len(admitted),
        "refused": len(refused),
        "other_errors": sorted({log.error or "" for log in logs if log not in refused and log not in admitted}),
        "slo_ttft_s": slo_s,
        "on_time": round(len(on_time) / len(admitted), 4),
        "goodput_of_capacity": round(len(on_time) / duration_s / capacity, 4),
        "ttft_p95_ms_by_10_s": by_time(admitted, began),
        "ttft_ms": ms(log.content_s[0] - log.sent_s for log in admitted),
        "refused_ms": ms(log.done_s - log.sent_s for log in refused),
        "unloaded_ttft_ms": round(usual_s * 1e3, 1),
        "memory_mib": {"before": round(memory[0]), "most": round(max(memory)), "after": round(resident_mib(pid))},
        "recovery_s": round(recovery_s, 2),
    }


def by_time(logs: list[RequestLog], began: float) -> list[float]:
    """Return the 95th percentile of the first tokens of each ten seconds of arrivals."""
    spans: dict[int, list[float]] = {}
    for log in logs:
        spans.setdefault(int((log.sent_s - began) // 10), []).append(log.content_s[0] - log.sent_s)
    return [ms(spans[span])["p95"] for span in sorted(spans)]


def ms(seconds: object) -> dict[str, float]:
    spread = distribution(seconds)  # type: ignore[arg-type]
    return {name: round(getattr(spread, name), 1) for name in ("p50", "p95", "p99", "max")}


def main() -> int:
    """Serve, load, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--max-wait-s", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    command = [sys.executable, "-m", "headrace", "serve", args.model, "--port", "0", "--log-level", "error"]
    command += ["--max-num-seqs", str(NUM_PLACES), "--max-wait-s", str(args.max_wait_s), "--kv-memory-mib", "256"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        assert found is not None, "the server did not start"
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # it runs on the server's cores
            figures = runner.run(measure(found.group(), server.pid, args))
    finally:
        server.terminate()
        server.wait()
    shape = {"model": args.model, "seconds": args.seconds, "times": args.times, "max_wait_s": args.max_wait_s}
    shape |= {"places": NUM_PLACES, "prompt_words": PROMPT_WORDS, "output_tokens": OUTPUT_TOKENS}
    text = json.dumps({**shape, **figures}, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
