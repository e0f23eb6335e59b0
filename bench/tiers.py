"""What a kept prefix saves: TTFT by where its KV comes from after a restart, and 64 users of one system prompt.

    python bench/tiers.py --model MODEL [--tokens 1000] [--users 64] [--redis redis://127.0.0.1:6379/0]

Prints one JSON object. Each engine is a new one in this process, so a block comes from where the row says and from
nowhere else: `cold` has no cache, `pool` finds the prompt in its own pool, `ram` in host memory after the pool was
filled with other prompts, `disk` and `redis` in what an earlier engine has left behind. One token is generated; prompts
are `--tokens` random token ids that all share and 10 of their own. The median of `--rounds`. Without `--redis` that row
is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from headrace.app.hardware import detect
from headrace.app.loading import LoadedModel, load_model, open_model
from headrace.app.pulling import ensure_pulled
from headrace.core.clock import MonotonicClock
from headrace.core.request import Request, RequestId, SamplingParams, StopRules
from headrace.core.settings import Settings, load

_TAIL = 10
_clock = MonotonicClock()


@asynccontextmanager
async def engine(settings: Settings, **changes: Any) -> AsyncIterator[LoadedModel]:
    """Run an engine with some settings changed."""
    chosen = msgspec.structs.replace(settings, engine=msgspec.structs.replace(settings.engine, **changes))
    loaded = load_model(open_model(ensure_pulled(chosen, chosen.models[0]), chosen, detect()), _clock)
    await loaded.engine.start()
    try:
        yield loaded
    finally:
        await loaded.engine.stop()


async def ttft_s(loaded: LoadedModel, prompt: list[int], name: str = "r", max_tokens: int = 1) -> float:
    """Return the seconds to the first token of one request."""
    request = Request(
        request_id=RequestId(name),
        model=loaded.name,
        prompt=tuple(prompt),
        sampling=SamplingParams(temperature=0.0),
        stop=StopRules(max_tokens=max_tokens),
        arrival_s=_clock.now(),
    )
    first = 0.0
    async for _ in loaded.engine.generate(request):
        first = first or _clock.now() - request.arrival_s
    return first


class Prompts:
    """Random prompts; the same seed gives the same system prompt."""

    def __init__(self, vocab_size: int, num_tokens: int) -> None:
        self._random = random.Random(1)
        self._vocab_size = vocab_size
        self._num_tokens = num_tokens
        self.system = self.fresh()

    def fresh(self) -> list[int]:
        """A prompt that nobody shares."""
        return [self._random.randrange(100, self._vocab_size) for _ in range(self._num_tokens)]

    def shared(self) -> list[int]:
        """The system prompt and a tail of its own."""
        return self.system + [self._random.randrange(100, self._vocab_size) for _ in range(_TAIL)]


def tier_hits(loaded: LoadedModel) -> dict[str, int]:
    return {tier.name: tier.num_hits for tier in loaded.engine.snapshot().tiers}


async def by_place(settings: Settings, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure a system prompt's TTFT from each place."""
    times: dict[str, list[float]] = {}
    hits: dict[str, dict[str, int]] = {}
    pool_mib = args.pool_mib
    for number in range(args.rounds):
        async with engine(settings, prefix_cache=False, kv_memory_mib=pool_mib) as loaded:
            prompts = Prompts(loaded.vocab_size, args.tokens)
            await ttft_s(loaded, prompts.fresh())
            times.setdefault("cold", []).append(await ttft_s(loaded, prompts.shared()))
        async with engine(settings, kv_memory_mib=pool_mib, kv_ram_bytes=256 << 20) as loaded:
            prompts = Prompts(loaded.vocab_size, args.tokens)
            await ttft_s(loaded, prompts.shared())
            times.setdefault("pool", []).append(await ttft_s(loaded, prompts.shared()))
            for _ in range(2 * loaded.plan.num_blocks.value * loaded.plan.block_size.value // args.tokens):
                await ttft_s(loaded, prompts.fresh())
            times.setdefault("ram", []).append(await ttft_s(loaded, prompts.shared()))
            hits["ram"] = tier_hits(loaded)
        places: dict[str, dict[str, Any]] = {"disk": {"kv_disk_dir": str(folder / f"kv{number}")}}
        if args.redis:
            places["redis"] = {"kv_redis_url": args.redis}
        for name, place in places.items():
            for turn in range(2):
                async with engine(settings, kv_memory_mib=pool_mib, **place) as loaded:
                    prompts = Prompts(loaded.vocab_size, args.tokens)
                    await ttft_s(loaded, prompts.fresh() if turn else prompts.shared())
                    seconds = await ttft_s(loaded, prompts.shared())
                    if turn:
                        times.setdefault(name, []).append(seconds)
                        hits[name] = tier_hits(loaded)
    cold = statistics.median(times["cold"])
    return {
        name: {
            "ttft_ms": round(1e3 * statistics.median(found), 1),
            "times_faster_than_cold": round(cold / statistics.median(found), 1),
            "blocks_from": hits.get(name, {}),
        }
        for name, found in times.items()
    }


async def by_users(settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    """Measure many users of one system prompt, who come at once, with and without the prefix cache."""
    rows: dict[str, Any] = {}
    for name, on in (("cache off", False), ("cache on", True)):
        async with engine(settings, prefix_cache=on, max_num_seqs=args.users) as loaded:
            prompts = Prompts(loaded.vocab_size, args.tokens)
            await ttft_s(loaded, prompts.fresh())
            before = loaded.engine.snapshot().prompt_tokens
            users = (ttft_s(loaded, prompts.shared(), f"u{i}", args.output) for i in range(args.users))
            found = sorted(await asyncio.gather(*users))
            rows[name] = {
                "prompt_tokens_computed": loaded.engine.snapshot().prompt_tokens - before,
                "ttft_median_ms": round(1e3 * statistics.median(found), 1),
                "ttft_worst_ms": round(1e3 * found[-1], 1),
            }
    off, on_row = rows["cache off"], rows["cache on"]
    rows["prefill_work_saved"] = round(1 - on_row["prompt_tokens_computed"] / off["prompt_tokens_computed"], 4)
    rows["ttft_median_times_faster"] = round(off["ttft_median_ms"] / on_row["ttft_median_ms"], 1)
    return rows


async def measure(settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="headrace-kv-") as folder:
        result: dict[str, Any] = {"model": args.model, "cores": detect().cores, "cpu": detect().cpu}
        if "places" in args.parts:
            result["places"] = {"tokens": args.tokens, **await by_place(settings, args, Path(folder))}
        if "users" in args.parts:
            result["users"] = {"users": args.users, "tokens": args.tokens, **await by_users(settings, args)}
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--output", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pool-mib", type=int, default=64)
    parser.add_argument("--redis")
    parser.add_argument("--parts", nargs="+", default=["places", "users"], choices=["places", "users"])
    args = parser.parse_args()
    settings = load(overrides={"models": [args.model]})
    print(json.dumps(asyncio.run(measure(settings, args)), indent=2))


if __name__ == "__main__":
    main()
