"""Closed-loop load over HTTP: N clients, each sends its next request when the last one has ended.

Prompts are token-exact where the server takes token ids and fixed text elsewhere; every request of a run is different
in its first words, so no prefix cache can serve them. Bounded in count and time; loopback only by intent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from headrace.bench.client import stream_request
from headrace.bench.metrics import LoadReport, RequestLog, summarize

_WORDS = [
    "water",
    "stone",
    "river",
    "field",
    "house",
    "light",
    "paper",
    "green",
    "small",
    "open",
    "early",
    "morning",
    "north",
    "bridge",
    "market",
    "copper",
    "winter",
    "story",
    "garden",
    "engine",
    "letter",
    "number",
    "corner",
    "silver",
    "window",
    "island",
    "summer",
    "valley",
    "simple",
    "button",
    "planet",
    "silent",
    "forest",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """One run: `num_clients` streams at a time, `num_requests` in all."""

    url: str
    model: str
    num_clients: int
    num_requests: int
    prompt_words: int
    output_tokens: int
    seed: int = 0
    api_key: str | None = None
    timeout_s: float = 600.0
    extra: tuple[tuple[str, object], ...] = (("ignore_eos", True),)


def make_prompt(words: int, seed: int) -> str:
    """Return `words` common English words in an order drawn from `seed`."""
    rng = random.Random(seed)
    return " ".join(rng.choice(_WORDS) for _ in range(words))


async def run_load(plan: LoadPlan, progress: Callable[[int], None] | None = None) -> LoadReport:
    """Run the plan to its end and return the report. `progress` gets the number of finished requests."""
    logs: list[RequestLog] = []
    queue = iter(range(plan.num_requests))

    async def client() -> None:
        for index in queue:
            body = {
                "model": plan.model,
                "prompt": make_prompt(plan.prompt_words, plan.seed * 1_000_003 + index),
                "max_tokens": plan.output_tokens,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **dict(plan.extra),
            }
            logs.append(await stream_request(plan.url, body, timeout_s=plan.timeout_s, api_key=plan.api_key))
            if progress is not None:
                progress(len(logs))

    await asyncio.gather(*(client() for _ in range(plan.num_clients)))
    return summarize(logs)
