"""What deciding costs: microseconds of the real scheduler and cache around a step, without a model.

    python bench/scheduler_cost.py [--out bench-results/scheduler-cost.json]

decode   schedule + commit of a step in which every sequence computes one token, in the middle of its answer
queue    the same while 256 more sequences of 8 tenants wait for a place
hit      one request whose prompt is in the prefix cache but for its last block, on an engine that is otherwise idle:
         submit and step. What is more than with a prompt of one block, of which nothing is cached, is the hit's:
         look-up, shared blocks, release. `make` is the making of the sequence, tokens packed, on another thread.

Medians over repeats, with the 90th percentile. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

from headrace.app.hardware import detect
from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Sample, Step, StepResult
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence, Urgency

BLOCK = 32
GREEDY = SamplingParams(temperature=0.0)


def build(num_blocks: int, max_num_seqs: int) -> Scheduler:
    limits = SchedulerLimits(
        max_num_seqs=max_num_seqs, max_step_tokens=1 << 16, max_context=1 << 15, max_waiting=1 << 20
    )
    return Scheduler(BlockPool(num_blocks), BLOCK, limits)


def sequence(seq_id: int, prompt: list[int], max_tokens: int, tenant: str = "") -> Sequence:
    return Sequence(SeqId(seq_id), prompt, GREEDY, max_tokens=max_tokens, urgency=Urgency(tenant=tenant))


def result(step: Step) -> StepResult:
    sample = Sample(7)
    return StepResult(
        step.step_id, tuple(None if row.sampling is None else sample for row in step.rows), elapsed_s=5e-3
    )


def step_us(scheduler: Scheduler, now: float) -> float:
    """Make one step and return what deciding took."""
    began = time.perf_counter()
    step = scheduler.schedule(now)
    middle = time.perf_counter()
    assert step is not None
    outcome = result(step)
    again = time.perf_counter()
    scheduler.commit(step, outcome, now)
    return (middle - began + time.perf_counter() - again) * 1e6


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(median(values), 1), "p90": round(quantiles(values, n=10)[-1], 1)}


def decode(rows: int, waiting: int, steps: int) -> dict[str, object]:
    """Time steps of `rows` sequences at a context of about 512 tokens."""
    scheduler = build(rows * 256, rows)
    for number in range(rows):
        scheduler.submit(sequence(number, [number, *range(511)], 8 * steps))
    for number in range(waiting):
        tenant = f"tenant-{number % 8}" if waiting else ""
        scheduler.submit(sequence(rows + number, [10_000 + number, *range(511)], 64, tenant), number * 1e-3)
    for k in range(5):
        step_us(scheduler, float(k))
    return {"rows": rows, "waiting": waiting, "us": spread([step_us(scheduler, 5.0 + k) for k in range(steps)])}


def hit(length: int, repeats: int) -> dict[str, object]:
    """Time requests of `length` prompt tokens, all but the last block of them cached."""
    scheduler = build(2 * length // BLOCK + 64, 8)
    prompt = list(range(length))
    scheduler.submit(sequence(0, prompt, 1))
    step_us(scheduler, 0.0)
    parts: dict[str, list[float]] = {"make": [], "submit": [], "step": []}

    def timed(name: str, work: Callable[[], object]) -> object:
        began = time.perf_counter()
        made = work()
        parts[name].append((time.perf_counter() - began) * 1e6)
        return made

    for number in range(1, repeats + 1):
        made = timed("make", lambda number=number: sequence(number, prompt, 1))
        assert isinstance(made, Sequence)
        timed("submit", lambda made=made: scheduler.submit(made, 0.0))
        parts["step"].append(step_us(scheduler, 0.0))
        assert made.num_cached >= length - BLOCK
    return {"prompt": length, "us": {name: spread(values) for name, values in parts.items()}}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    document = {
        "decode": [decode(rows, 0, args.steps) for rows in (1, 64, 256)],
        "queue": [decode(rows, 256, args.steps) for rows in (64, 256)],
        "hit": [hit(length, args.steps) for length in (BLOCK, 1024, 4096, 16384)],
        "python": sys.version.split()[0],
        "cpu": detect().cpu,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": f"python bench/scheduler_cost.py --steps {args.steps}",
    }
    text = json.dumps(document, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
