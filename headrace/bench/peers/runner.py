"""The loop every runner shares: one JSON request a line on stdin, one JSON answer a line on stdout.

Standard library only, and no import of the package: it runs inside a peer's virtual environment. What the peer prints
on stdout is moved to stderr, so answers stay clean. A failing request is answered with {"error": …}; the loop goes on.

    generate  {"prompts": [[ids], …], "output_tokens": n}  → {"seconds": wall time of the whole call}
    logits    {"chunks": [[ids], …], "path": FILE}         → {"path": FILE} float32 [tokens, V], chunks stacked
    info      {}                                           → {"version": …, "settings": …, "peak_rss_mib": …}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Peer(Protocol):
    """An engine that has loaded its model."""

    version: str
    settings: str

    def generate(self, prompts: list[list[int]], output_tokens: int) -> None:
        """Continue every prompt greedily by exactly `output_tokens` tokens, as one batch."""
        ...

    def logits(self, chunks: list[list[int]], path: str) -> None:
        """Write the logits of fresh contexts to `path` (numpy .npy)."""
        ...


def main(load: Callable[[dict[str, Any]], Peer]) -> None:
    """Load with the JSON of argv[1], say ready, then answer until stdin closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    start = time.perf_counter()
    try:
        peer = load(json.loads(sys.argv[1]))
    except Exception as error:
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"[:2000]}) + "\n")
        sys.exit(1)
    answers.write(json.dumps({"ready_s": time.perf_counter() - start}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(peer, request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        answers.write(json.dumps(answer) + "\n")


def _peak_rss_mib() -> float | None:
    """Return this process's own peak; getrusage's also has the parent's size at the fork. None where it is not told."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def _answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    task = request["task"]
    if task == "generate":
        start = time.perf_counter()
        peer.generate(request["prompts"], request["output_tokens"])
        return {"seconds": time.perf_counter() - start}
    if task == "logits":
        peer.logits(request["chunks"], request["path"])
        return {"path": request["path"]}
    if task == "info":
        return {"version": peer.version, "settings": peer.settings, "peak_rss_mib": _peak_rss_mib()}
    raise ValueError(f"unknown task '{task}'")
