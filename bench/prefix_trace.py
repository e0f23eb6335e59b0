"""Replay a trace of prefix block ids on the real scheduler and cache, without a model, against an independent LRU.

    python bench/prefix_trace.py TRACE.jsonl [--requests N] [--shares 1 5 20 100]

Each line of the trace has `hash_ids`: equal ids mean an equal prefix (Mooncake, FAST '25; Apache-2.0). One id becomes
one block of two tokens; one more token per request fills no block and is computed anew. Requests run one after the
other, so that the order of use is the trace's. The LRU is a plain ordered dictionary of ids that knows no blocks, trees
or steps. Prints one JSON object; capacities are shares of the distinct blocks of the trace. Exits with 1 if the hits
differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import OrderedDict
from pathlib import Path

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Sample, StepResult
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence


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


def replay(requests: list[list[int]], capacity: int) -> tuple[int, float]:
    """Return the hits of the scheduler's cache and the seconds it took."""
    longest = 2 * max(map(len, requests)) + 2
    limits = SchedulerLimits(max_num_seqs=1, max_step_tokens=longest, max_context=longest, max_waiting=1)
    scheduler = Scheduler(BlockPool(capacity), 2, limits)
    began = time.perf_counter()
    for number, ids in enumerate(requests):
        tokens = [*(token for block in ids for token in (block, block)), 0]
        scheduler.submit(Sequence(SeqId(number), tokens, SamplingParams(), max_tokens=1))
        step = scheduler.schedule(0.0)
        assert step is not None
        assert len(step.rows) == 1
        scheduler.commit(step, StepResult(step.step_id, (Sample(0),)), 0.0)
        assert not scheduler.has_work
    elapsed_s = time.perf_counter() - began
    scheduler.check()
    return scheduler.totals.prefix_hits // 2, elapsed_s


def main() -> int:
    """Replay at each capacity and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--requests", type=int, default=None)
    parser.add_argument("--shares", type=float, nargs="+", default=[1, 5, 20, 100])
    args = parser.parse_args()
    requests = [json.loads(line)["hash_ids"] for line in args.trace.read_text().splitlines()][: args.requests]
    distinct, total = len({i for ids in requests for i in ids}), sum(map(len, requests))
    longest = max(map(len, requests)) + 2
    best = lru_hits(requests, distinct + total)
    rows = []
    for share in args.shares:
        capacity = max(round(distinct * share / 100), longest)
        hits, elapsed_s = replay(requests, capacity)
        rows.append(
            {
                "share_percent": share,
                "blocks": capacity,
                "hits": hits,
                "lru_hits": lru_hits(requests, capacity),
                "hit_rate": round(hits / total, 4),
                "of_unlimited": round(hits / best, 4),
                "us_per_request": round(elapsed_s / len(requests) * 1e6, 1),
            }
        )
    result = {"trace": args.trace.name, "requests": len(requests), "distinct": distinct, "looked_up": total}
    print(json.dumps({**result, "unlimited_hit_rate": round(best / total, 4), "rows": rows}, indent=2))
    return 0 if all(row["hits"] == row["lru_hits"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
