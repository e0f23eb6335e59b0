"""Memory of a gateway that holds many slow streams open, with accounts and without.

    python bench/gateway_streams.py [--streams 1000] [--out bench-results/gateway-streams.json] [--database postgresql://…]

`headrace serve` before a remote upstream that writes a token every quarter of a second. With: a key, three limits and
two hard budgets, so that each stream holds a reservation, and the audit log. Every stream is read to its end, and its
text has to be whole. Memory is the server's resident set.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import tempfile
import time
from pathlib import Path

from gateway_latency import gateway, prepare, upstream

GAP_S = 0.25
TOKENS = 60


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def read_stream(port: int, key: str) -> bool:
    """Read one stream; say whether it said what it should."""
    body = json.dumps({"model": "echo", "prompt": "hello", "max_tokens": TOKENS + 8, "stream": True}).encode()
    head = ["POST /v1/completions HTTP/1.1", "host: x", "connection: close", f"content-length: {len(body)}"]
    head += [f"authorization: Bearer {key}"] if key else []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
    text = ""
    async for line in reader:
        if line.startswith(b"data: {"):
            text += json.loads(line[6:])["choices"][0]["text"]
    writer.close()
    return text == "t" * TOKENS


async def hold(port: int, key: str, num_streams: int, pid: int) -> dict[str, float]:
    """Open the streams over two seconds, watch the server's memory until the last has ended."""
    most = before = resident_mib(pid)
    began = time.perf_counter()
    tasks = []
    for _ in range(num_streams):
        tasks.append(asyncio.ensure_future(read_stream(port, key)))
        await asyncio.sleep(2.0 / num_streams)
    open_at_once = sum(not task.done() for task in tasks)
    while not all(task.done() for task in tasks):
        most = max(most, resident_mib(pid))
        await asyncio.sleep(0.1)
    right = sum(task.result() for task in tasks)
    return {
        "before_mib": round(before),
        "most_mib": round(most),
        "after_mib": round(resident_mib(pid)),
        "open_at_once": open_at_once,
        "right": right,
        "seconds": round(time.perf_counter() - began, 1),
    }


def measure(database: str | None, num_streams: int) -> dict[str, float]:
    with upstream("--gap", str(GAP_S), "--tokens", str(TOKENS)) as port, tempfile.TemporaryDirectory() as folder:
        key = "" if database is None else asyncio.run(prepare(database))
        with gateway(port, Path(folder), database, "none" if database is None else "all", "0") as (front, pid):
            return asyncio.run(hold(front, key, num_streams, pid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000, help="open at once (default: 1000)")
    parser.add_argument("--database", help="default: a new SQLite file")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = args.database or f"sqlite:///{Path(folder) / 'accounts.db'}"
        result = {
            "streams": args.streams,
            "tokens": TOKENS,
            "gap_s": GAP_S,
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "without_accounts": measure(None, args.streams),
            "with_accounts": measure(database, args.streams),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
