"""Replay a trace of prefix block ids on the real scheduler and cache, without a model, against an independent LRU.

    python bench/prefix_trace.py TRACE.jsonl [--requests N] [--shares 1 5 20 100] [--policies lru cost]

Each line of the trace has `hash_ids`: equal ids mean an equal prefix (Mooncake, FAST '25; Apache-2.0). One id becomes
one block of 512 tokens; one more token per request fills no block and is computed anew. Requests run one after the
other, so that the order of use is the trace's. The LRU is a plain ordered dictionary of ids that knows no blocks, trees
or steps; the oracle evicts what is needed furthest in the future, the most that any policy could hit. Prints one JSON
object; capacities are shares of the distinct blocks of the trace. Exits with 1 if the hits of `lru` differ from the
LRU's, or those of `cost` are fewer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import OrderedDict
from heapq import heappop, heappush
from pathlib import Path

from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import PrefixPolicy
from headrace.core.step import Sample, StepResult
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence

BLOCK = 512
POLICIES: tuple[PrefixPolicy, ...] = ("lru", "cost")


def lru_hits(requests: list[list[int]], capacity: int) -> int:
    """Count the blocks found by a cache of `capacity` blocks that a request in progress shares with the kept ones."""
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for ids in requests:
        num_found = 0
        while num_found < len(ids) and ids[num_found] in kept:
            num_found += 1
        hits += num_found
        for block in ids[:num_found]:
            del kept[block]
        while len(kept) + len(ids) + 1 > capacity:  # one for the last token
            kept.popitem(last=False)
        for block in reversed(ids):
            kept[block] = None
    return hits


def oracle_hits(requests: list[list[int]], capacity: int) -> int:
    """Count the blocks found by a cache that evicts the block whose next use is furthest in the future."""
    coming: dict[int, float] = {}
    next_uses: list[list[float]] = [[] for _ in requests]
    for number in range(len(requests) - 1, -1, -1):
        next_uses[number] = [coming.get(block, math.inf) for block in requests[number]]
        coming.update(dict.fromkeys(requests[number], number))
    kept: dict[int, float] = {}
    queue: list[tuple[float, int, int]] = []
    hits = 0
    for number, ids in enumerate(requests):
        num_found = 0
        while num_found < len(ids) and ids[num_found] in kept:
            num_found += 1
        hits += num_found
        for block in ids[:num_found]:
            del kept[block]
        while len(kept) + len(ids) + 1 > capacity:
            next_use, _, block = heappop(queue)
            if kept.get(block) == -next_use:
                del kept[block]
        for depth, block in enumerate(ids):
            kept[block] = next_uses[number][depth]
            heappush(queue, (-kept[block], -depth, block))
    return hits


def replay(requests: list[list[int]], capacity: int, policy: PrefixPolicy) -> tuple[int, float]:
    """Return the hits of the scheduler's cache and the seconds the scheduler took."""
    longest = BLOCK * (max(map(len, requests)) + 1)
    limits = SchedulerLimits(
        max_num_seqs=1, max_step_tokens=longest, max_context=longest, max_waiting=1, prefix_policy=policy
    )
    scheduler = Scheduler(BlockPool(capacity), BLOCK, limits)
    elapsed_s = 0.0
    for number, ids in enumerate(requests):
        tokens = [token for block in ids for token in [block] * BLOCK]
        sequence = Sequence(SeqId(number), [*tokens, 0], SamplingParams(), max_tokens=1)
        began = time.perf_counter()
        scheduler.submit(sequence)
        step = scheduler.schedule(0.0)
        assert step is not None
        assert len(step.rows) == 1
        scheduler.commit(step, StepResult(step.step_id, (Sample(0),)), 0.0)
        elapsed_s += time.perf_counter() - began
        assert not scheduler.has_work
    scheduler.check()
    return scheduler.totals.prefix_hits // BLOCK, elapsed_s


def main() -> int:
    """Replay at each capacity and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--requests", type=int, default=None)
    parser.add_argument("--shares", type=float, nargs="+", default=[1, 5, 20, 100])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    args = parser.parse_args()
    requests = [json.loads(line)["hash_ids"] for line in args.trace.read_text().splitlines()][: args.requests]
    distinct, total = len({i for ids in requests for i in ids}), sum(map(len, requests))
    longest = max(map(len, requests)) + 2
    best = lru_hits(requests, distinct + total)
    rows = []
    is_right = True
    for share in args.shares:
        capacity = max(round(distinct * share / 100), longest)
        expected = lru_hits(requests, capacity)
        row = {"share_percent": share, "blocks": capacity, "lru_model_hits": expected}
        row["oracle_hits"] = oracle_hits(requests, capacity)
        for policy in args.policies:
            hits, elapsed_s = replay(requests, capacity, policy)
            is_right &= hits == expected if policy == "lru" else hits >= expected
            row[policy] = {
                "hits": hits,
                "hit_rate": round(hits / total, 4),
                "of_unlimited": round(hits / best, 4),
                "of_lru": round(hits / expected, 4),
                "us_per_request": round(elapsed_s / len(requests) * 1e6, 1),
            }
        rows.append(row)
    result = {"trace": args.trace.name, "requests": len(requests), "distinct": distinct, "looked_up": total}
    print(json.dumps({**result, "unlimited_hit_rate": round(best / total, 4), "rows": rows}, indent=2))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
