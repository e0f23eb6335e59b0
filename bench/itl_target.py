"""What a target for the gap between tokens does and costs: a real server with and without `--itl-target-ms`.

    python bench/itl_target.py [--model MODEL] [--targets 0 60 40] [--clients 16 64] [--seconds 8] [--out FILE]

Closed loop: each client sends its next request when its last has ended; prompts of 300 words that no cache has, answers
of 48 tokens. 0 stands for no target. Figures as the client saw them, in milliseconds; tokens are output tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from headrace.bench.client import stream_request
from headrace.bench.load import make_prompt
from headrace.bench.metrics import LoadReport, RequestLog, summarize

PROMPT_WORDS, OUTPUT_TOKENS = 300, 48


async def load(url: str, num_clients: int, seconds: float, seed: int) -> LoadReport:
    logs: list[RequestLog] = []
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        sent = 0
        while time.perf_counter() < end:
            body = {
                "prompt": make_prompt(PROMPT_WORDS, seed + number * 10_000 + sent),
                "max_tokens": OUTPUT_TOKENS,
                "temperature": 0.0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            logs.append(await stream_request(f"{url}/v1/completions", body, timeout_s=120.0))
            sent += 1

    await asyncio.gather(*(client(number) for number in range(num_clients)))
    return summarize(logs)


def measure(args: argparse.Namespace, target_ms: float) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "headrace", "serve", args.model, "--port", "0", "--log-level", "error"]
    command += ["--itl-target-ms", str(target_ms)] if target_ms else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    rows: list[dict[str, object]] = []
    try:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        assert found is not None, "the server did not start"
        asyncio.run(load(found.group(), 4, 2.0, 1))
        for num_clients in args.clients:
            report = asyncio.run(load(found.group(), num_clients, args.seconds, 1_000_000 * num_clients))
            rows.append(
                {
                    "itl_target_ms": target_ms or None,
                    "clients": num_clients,
                    "completed": report.completed,
                    "failed": report.failed,
                    "tokens_per_s": round(report.output_tokens_per_s, 1),
                    "itl_ms": {name: round(getattr(report.itl_ms, name), 1) for name in ("p50", "p90", "p99")},
                    "ttft_ms": {name: round(getattr(report.ttft_ms, name), 1) for name in ("p50", "p90", "p99")},
                }
            )
    finally:
        server.terminate()
        server.wait()
    return rows


def main() -> int:
    """Serve once for each target, load, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.0, 60.0, 40.0])
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    rows = [row for target_ms in args.targets for row in measure(args, target_ms)]
    shape = {"model": args.model, "prompt_words": PROMPT_WORDS, "output_tokens": OUTPUT_TOKENS}
    text = json.dumps({**shape, "rows": rows}, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
