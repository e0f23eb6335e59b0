"""What the host does for one decode step of the cuda backend, in microseconds by stage, without a GPU.

    python bench/gpu_host.py [--rows 1 16 64 256] [--out bench-results/gpu-host.json]

The real engine, scheduler and executor serve on torch's CPU device; what the device itself does is taken out. The model
computes nothing, every line draws token 7, and a recorded step is replayed by not running it again. So a step is what
the engine's thread does: schedule, pack, write to the staging buffer, queue, read the answers, commit, report.

Each figure is the median over the steps after all prompts are computed, with the next step planned while one is under
way. `share` is that time over the device's time for the same step of Llama 3 8B, which is PREDICTED from the bytes of
weights and KV at 4.3 TB/s. `ops` counts what the step gives to the device one by one, apart from the replay.

Missing here, and a GPU's to add: about 3 µs for each copy, 2 µs for each event, 10 to 20 µs for the launch of a graph,
and waking up from waiting. A CPU's copies are made while it is asked for them, a GPU's are not.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

import pytest
import torch
from gpu_models import RandomCheckpoint, llama
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.app.garbage import set_aside
from headrace.app.hardware import detect
from headrace.core.clock import MonotonicClock
from headrace.core.request import SamplingParams, SeqId
from headrace.engine.engine import Engine, StepReport
from headrace.executor.cuda import decode, forms
from headrace.executor.cuda import executor as executing
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.kv import BlockPool
from headrace.model.build import build_program
from headrace.ops.cuda import sampling as ops
from headrace.sched import Scheduler, SchedulerLimits, Sequence

BLOCK_SIZE = 32
BYTES_PER_S = 4.3e12
VOCABULARY = 256
NUM_WARM = 40  # steps of single tokens before the first that counts
SAMPLING = {
    "greedy": lambda number: SamplingParams(temperature=0.0),
    "drawn": lambda number: SamplingParams(temperature=0.8, top_p=0.95, top_k=40, seed=number),
}
NO_WORK = {
    "view",
    "slice",
    "select",
    "unbind",
    "empty",
    "as_strided",
    "detach",
    "alias",
    "reshape",
    "unsqueeze",
    "t",
    "resolve_conj",
    "resolve_neg",
    "lift_fresh",
}
MISSING_US = {"copy": 3.0, "event": 2.0, "graph": 15.0}


class Stages:
    """Nanoseconds of the step in hand by stage, and those of the steps before. Of one thread."""

    def __init__(self) -> None:
        self.now: dict[str, int] = defaultdict(int)
        self.steps: list[dict[str, int]] = []

    def timed(self, plain: Callable[..., object], stage: str) -> Callable[..., object]:
        """Return a function that does the same and is timed."""

        def timed(*args: object, **options: object) -> object:
            began = time.perf_counter_ns()
            try:
                return plain(*args, **options)
            finally:
                self.now[stage] += time.perf_counter_ns() - began

        return timed

    def end_step(self) -> None:
        self.steps.append(dict(self.now))
        self.now.clear()


class OpCounter(TorchDispatchMode):
    """Counts what would reach the device one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if name not in NO_WORK:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class Replays:
    """Stands in for recorded graphs: the first step of a bucket is run, the others are what it returned."""

    def __init__(self, graphs: object) -> None:
        self._graphs = graphs
        self._kept: dict[int, object] = {}
        self.sizes = graphs.sizes  # type: ignore[attr-defined]
        self.bucket_of = graphs.bucket_of  # type: ignore[attr-defined]
        self.forget = graphs.forget  # type: ignore[attr-defined]

    def run(self, bucket: int, work: Callable[[], object]) -> object:
        if bucket not in self._kept:
            self._kept[bucket] = work()
        return self._kept[bucket]


def idle_executor(rows: int, context: int) -> CudaExecutor:
    """Return an executor whose model computes nothing."""
    program = build_program(llama("tiny"))
    executor = CudaExecutor(
        program,
        RandomCheckpoint(program),  # type: ignore[arg-type]
        num_blocks=rows * -(-context // BLOCK_SIZE) + rows,
        block_size=BLOCK_SIZE,
        options=DeviceOptions(device="cpu", max_step_tokens=8192, max_rows=max(rows, 1), max_context=context),
    )
    model = executor._model
    assert model is not None
    hidden = torch.zeros((8192, program.hidden_size), dtype=torch.bfloat16)
    model.run = lambda batch: hidden[: len(batch.tokens if batch.kept is None else batch.kept)]  # type: ignore
    model.logits = lambda lines: model._logits[: len(lines)]  # type: ignore
    executor._graphs = executor._decode._graphs = Replays(executor._graphs)  # type: ignore
    return executor


@functools.cache
def sevens(rows: int) -> torch.Tensor:
    out = torch.zeros((rows, ops.OUT_TOP), dtype=torch.float64)
    out[:, ops.OUT_TOKEN] = 7
    return out


def draw_sevens(logits: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
    """Stand in for the kernels that draw."""
    return sevens(len(logits))


def watch(
    engine: Engine, scheduler: Scheduler, executor: CudaExecutor, stages: Stages, patch: pytest.MonkeyPatch
) -> None:
    """Time the stages of every step from now on."""
    for owner, method, stage in (
        (scheduler, "schedule", "schedule"),
        (scheduler, "commit", "commit"),
        (executor, "launch", "launch"),
        (executor._tables, "update", "tables"),
        (executor._staging, "close", "staging"),
        (executor._feed, "fill", "feed"),
        (executor._feed, "keep", "feed"),
        (executor._sampling, "describe", "sampling"),
        (executor._landings, "land", "landing"),
        (decode, "pack_single", "pack"),
        (executing, "read_step", "read"),
    ):
        patch.setattr(owner, method, stages.timed(getattr(owner, method), stage))
    step = stages.timed(engine._step, "step")

    def whole() -> None:
        step()
        stages.end_step()

    patch.setattr(engine, "_step", whole)


def measure(rows: int, kind: str, context: int, steps: int) -> dict[str, object]:
    """Serve `rows` requests and return the medians of their decode steps."""
    executor = idle_executor(rows, context + 2 * steps)
    limits = SchedulerLimits(
        max_num_seqs=rows,
        max_step_tokens=8192,
        max_context=context + 2 * steps,
        max_waiting=rows + 1,
        plans_ahead=True,
    )
    scheduler = Scheduler(BlockPool(executor.num_blocks), BLOCK_SIZE, limits)
    engine = Engine(scheduler, executor, MonotonicClock())
    stages, counter, done = Stages(), OpCounter(), threading.Event()
    num_decoded = 0
    with pytest.MonkeyPatch.context() as patch:

        def counted(*args: object, **options: object) -> object:
            patch.setattr(executor, "_launch", launch)
            with counter:
                return launch(*args, **options)  # type: ignore[arg-type]

        def deliver(report: StepReport) -> None:
            nonlocal num_decoded
            if report.step is None or not report.step.num_tokens == report.step.num_rows == rows:
                return
            num_decoded += 1
            if num_decoded == NUM_WARM // 2:
                patch.setattr(executor, "_launch", counted)
            elif num_decoded == NUM_WARM:
                watch(engine, scheduler, executor, stages, patch)
            elif num_decoded == NUM_WARM + steps:
                done.set()

        launch = executor._launch
        for module in (executing, decode):
            patch.setattr(module, "try_draw", draw_sevens)
        for number in range(rows):
            # Blocks are not filled all in the same step, as those of real prompts are not.
            length = context - steps // 2 + number * 7 % BLOCK_SIZE
            prompt = [number % VOCABULARY, *(i % VOCABULARY for i in range(length))]
            engine.submit([Sequence(SeqId(number), prompt, SAMPLING[kind](number), max_tokens=2 * steps)])
        engine.start(deliver)
        engine.dead.add_done_callback(lambda ended: done.set())
        done.wait(120)
        engine.stop()
        engine.dead.result(timeout=60)
    if num_decoded < NUM_WARM + steps:
        raise RuntimeError(f"{num_decoded} steps of {rows} rows came in two minutes")
    return figures(rows, kind, stages.steps[2 : steps - 2], counter.names)


def figures(rows: int, kind: str, steps: list[dict[str, int]], names: list[str]) -> dict[str, object]:
    """Return medians in microseconds; what is left of a whole is its `rest`."""
    parts = ("schedule", "tables", "pack", "sampling", "staging", "feed", "landing", "launch rest", "read", "commit",
             "loop rest")  # fmt: skip
    within = ("tables", "pack", "sampling", "staging", "feed", "landing")
    for step in steps:
        step["launch rest"] = step["launch"] - sum(step.get(part, 0) for part in within)
        step["loop rest"] = step["step"] - sum(step.get(part, 0) for part in ("schedule", "launch", "read", "commit"))
    whole = [step["step"] / 1e3 for step in steps]
    return {
        "rows": rows,
        "sampling": kind,
        "us": {part: round(median(step.get(part, 0) for step in steps) / 1e3, 1) for part in parts},
        "step_us": round(median(whole), 1),
        "step_p90_us": round(quantiles(whole, n=10)[-1], 1),
        "ops": names,
    }


def predicted_us(size: str, rows: int, context: int) -> float:
    """Return the device's time for a step of a model in bf16, from the bytes that it has to read."""
    program = build_program(llama(size))
    embed = program.vocab_size * program.hidden_size if size == "8b" else 0
    weights = 0
    for spec in program.weights:
        count = 1
        for length in spec.shape:
            count *= length
        weights += count
    kv = forms.kv_block_bytes(program.cache_layers, block_size=1)
    return (2 * (weights - embed) + kv * context * rows) / BYTES_PER_S * 1e6


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--context", type=int, default=1100)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_aside()
    found = []
    for kind in SAMPLING:
        for rows in args.rows:
            row = measure(rows, kind, args.context, args.steps)
            for size in ("8b", "1b"):
                predicted = predicted_us(size, rows, args.context)
                row[f"predicted_{size}_us"] = round(predicted)
                row[f"share_of_predicted_{size}"] = round(row["step_us"] / predicted, 3)  # type: ignore[operator]
            found.append(row)
            show(row)
    document = {
        "decode": found,
        "missing_us": MISSING_US,
        "context": args.context,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cpu": detect().cpu,
        "cores": detect().cores,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": f"python bench/gpu_host.py --context {args.context} --steps {args.steps}",
    }
    if args.out is not None:
        args.out.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def show(row: dict[str, object]) -> None:
    """Print one batch size."""
    us = row["us"]
    assert isinstance(us, dict)
    parts = "  ".join(f"{name} {value}" for name, value in us.items())
    shares = ", ".join(f"{row[f'share_of_predicted_{size}']:.1%} of {size}'s {row[f'predicted_{size}_us']} us"
                       for size in ("8b", "1b"))  # fmt: skip
    print(f"{row['rows']:>4} rows {row['sampling']:<7} {row['step_us']:>8} us (p90 {row['step_p90_us']})  | {parts}")
    print(f"     predicted: {shares}; ops: {', '.join(row['ops'])}", flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
