"""What the host does for one step of the cuda backend, in microseconds by stage, without a GPU.

    python bench/gpu_host.py [--rows 1 16 64 256] [--out bench-results/gpu-host.json]
    python bench/gpu_host.py --chunk 512 [--rows 3 63 254] [--out bench-results/gpu-host.json]

The real engine, scheduler and executor serve on torch's CPU device; what the device itself does is taken out. The model
computes nothing, every line draws token 7, and a recorded step is replayed by not running it again. So a step is what
the engine's thread does: schedule, pack, write to the staging buffer, queue, read the answers, commit, report.

Each figure is the median over the steps after all prompts are computed, with the next step planned while one is under
way. `share` is that time over the device's time for the same step of Llama 3 8B, which is PREDICTED from the bytes of
weights and KV at 4.3 TB/s. `interval` is what the same engine needs from step to step if the device takes just that
time for each: what is more than it does not hide. `ops` counts what a step gives to the device one by one, apart from
the replay.

With --chunk each step holds so many tokens of a prompt besides, in two ways: replayed, and kernel by kernel through as
many layers as 1B and 8B have, which is what such steps did before they were recorded. There the launches are Triton's
up to the driver's call, and products of many tokens are left out: LEFT_OUT says what a GPU adds for each. The device's
time is then the larger one of what products take at 750 TFLOP/s and weights at 4.3 TB/s, and the reading of KV.

Missing here, and a GPU's to add: about 3 µs for each copy, 2 µs for each event, 10 to 20 µs for the launch of a graph,
and waking up from waiting. A CPU's copies are made while it is asked for them, a GPU's are not.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

import pytest
import torch
import triton
from gpu_host_device import LAYERS, LEFT_OUT, launch_nowhere, predicted_mixed_us, predicted_us
from gpu_models import RandomCheckpoint, llama
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.app.garbage import set_aside
from headrace.app.hardware import detect
from headrace.core.clock import MonotonicClock
from headrace.core.request import SamplingParams, SeqId
from headrace.engine.engine import Engine, StepReport
from headrace.executor.cuda import eager, recorded
from headrace.executor.cuda import executor as executing
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.executor.cuda.graphs import Graphs, Kind, Outputs
from headrace.executor.cuda.queues import Mark, Queue
from headrace.kv import BlockPool
from headrace.model.build import build_program
from headrace.ops.cuda import sampling as ops
from headrace.sched import Scheduler, SchedulerLimits, Sequence

BLOCK_SIZE = 32
VOCABULARY = 256
CHUNKS, NUM_QUEUED = 2, 4  # of each prompt, and prompts that wait
CHUNKED_CONTEXT = 64  # of the rows beside them: chunks of longer ones would come one a step before steps count
NUM_WARM = 40  # steps of the shape that is measured, before the first that counts
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


_numbers = itertools.count(10_000)


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


class Paced:
    """Queues of a device whose steps take a given time, and which does nothing in it."""

    def __init__(self, step_us: float) -> None:
        self._step_s = step_us * 1e-6
        self._ends = 0.0

    def run_step(self) -> None:
        self._ends = max(self._ends, time.perf_counter()) + self._step_s

    def run(self, queue: Queue, work: Callable[[], object]) -> None:
        work()

    def mark(self, queue: Queue) -> PacedMark:
        return PacedMark(max(self._ends, time.perf_counter()))

    def wait(self, queue: Queue, mark: Mark) -> None:
        return


class PacedMark:
    """A point in time that the host sleeps until."""

    def __init__(self, at: float) -> None:
        self._at = at

    def synchronize(self) -> None:
        while (left := self._at - time.perf_counter()) > 0:
            time.sleep(left)

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, PacedMark)
        return self._at - earlier._at


class Replays:
    """Stands in for recorded graphs: the first step of a bucket is run, the others are what it returned."""

    def __init__(self, graphs: Graphs, device: Paced) -> None:
        self._device = device
        self._kept: dict[Kind, Outputs] = {}
        self.forget = graphs.forget

    def run(self, kind: Kind, work: Callable[[], Outputs], *, is_dry_run: bool) -> Outputs:
        if kind not in self._kept:
            self._kept[kind] = work()
        self._device.run_step()
        return self._kept[kind]


@dataclass(frozen=True)
class Case:
    """A batch, and how long the device takes for its steps.

    chunk   tokens of a prompt in each step besides
    layers  that are launched kernel by kernel; 0: steps are replayed
    """

    rows: int
    kind: str
    context: int
    steps: int
    device_us: float = 0.0
    chunk: int = 0
    layers: int = 0


def idle_executor(case: Case, context: int) -> CudaExecutor:
    """Return an executor whose model computes nothing, in a given time."""
    rows = case.rows + 2 * (case.chunk > 0)
    config = llama("tiny")
    program = build_program(replace(config, num_layers=case.layers or config.num_layers))
    executor = CudaExecutor(
        program,
        RandomCheckpoint(program),  # type: ignore[arg-type]
        num_blocks=rows * -(-context // BLOCK_SIZE) + rows,
        block_size=BLOCK_SIZE,
        options=DeviceOptions(
            device="cpu", max_step_tokens=8192, max_rows=rows, max_context=context,
            chunk_tokens=0 if case.layers else case.chunk,
        ),
    )  # fmt: skip
    if case.layers:
        return executor
    model = executor._model
    assert model is not None
    hidden = torch.zeros((8192, program.hidden_size), dtype=torch.bfloat16)
    model.run = lambda batch, is_whole=False: hidden[: len(batch.tokens if batch.kept is None else batch.kept)]  # type: ignore
    model.logits = lambda lines: model._logits[: len(lines)]  # type: ignore
    device = Paced(case.device_us)
    executor._graphs = executor._recorded._graphs = Replays(executor._graphs, device)  # type: ignore
    executor._queues = device
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
        (recorded, "pack_single", "pack"),
        (executing, "pack_step", "pack"),
        (recorded, "pad_batch", "pack"),
        (executing, "read_step", "read"),
    ):
        patch.setattr(owner, method, stages.timed(getattr(owner, method), stage))
    step = stages.timed(engine._step, "step")

    def whole() -> None:
        step()
        stages.end_step()

    patch.setattr(engine, "_step", whole)


def submit_prompt(engine: Engine, case: Case) -> None:
    """Queue a prompt of whole chunks that is answered by one token."""
    prompt = [next(_numbers) % VOCABULARY] * (CHUNKS * case.chunk)
    sampling = SAMPLING[case.kind](1)
    engine.submit([Sequence(SeqId(next(_numbers)), prompt, sampling, max_tokens=1)])


def serve(case: Case, on_step: Callable[[Engine, Scheduler, CudaExecutor, int], None]) -> None:
    """Serve as many requests at once as a batch has rows, and tell of every step of its shape by its number: single
    tokens, or these beside a chunk of one prompt after the other."""
    most = NUM_WARM + 2 * case.steps + 100  # no answer ends while steps count
    context = max(case.context, CHUNKS * case.chunk) + most
    executor = idle_executor(case, context)
    limits = SchedulerLimits(
        max_num_seqs=case.rows + 2 * (case.chunk > 0),  # the next prompt begins before the last one's end is known
        max_step_tokens=8192,
        max_context=context,
        max_waiting=case.rows + 2 * NUM_QUEUED,
        prefix_cache=not case.chunk,
        chunk_tokens=case.chunk or None,
        chunk_grows=False,
        plans_ahead=True,
    )
    scheduler = Scheduler(BlockPool(executor.num_blocks), BLOCK_SIZE, limits)
    engine = Engine(scheduler, executor, MonotonicClock())
    done = threading.Event()
    num_steps = 0

    def deliver(report: StepReport) -> None:
        nonlocal num_steps
        # One prompt's last part and the first of the next may share a chunk.
        num_prompts = -1 if report.step is None else report.step.num_rows - case.rows
        is_one = num_prompts in (1, 2) if case.chunk else num_prompts == 0
        if is_one and report.step is not None and report.step.num_tokens == case.rows + case.chunk:
            num_steps += 1
            if case.chunk and num_steps % CHUNKS == 0 and not done.is_set():
                submit_prompt(engine, case)
            on_step(engine, scheduler, executor, num_steps)
            if num_steps == NUM_WARM + case.steps:
                done.set()

    for number in range(case.rows):
        # Blocks are not filled all in the same step, as those of real prompts are not.
        length = (CHUNKED_CONTEXT if case.chunk else case.context - case.steps // 2) + number * 7 % BLOCK_SIZE
        prompt = [number % VOCABULARY, *(i % VOCABULARY for i in range(length))]
        engine.submit([Sequence(SeqId(number), prompt, SAMPLING[case.kind](number), max_tokens=most)])
    for _ in range(NUM_QUEUED if case.chunk else 0):
        submit_prompt(engine, case)
    engine.start(deliver)
    engine.dead.add_done_callback(lambda ended: done.set())
    done.wait(60)
    engine.stop()
    engine.dead.result(timeout=60)
    if num_steps < NUM_WARM + case.steps:
        raise RuntimeError(f"{num_steps} steps of {case.rows} rows came in a minute")


def measure(case: Case) -> dict[str, object]:
    """Return the medians of a batch's stages."""
    stages, counter = Stages(), OpCounter()
    with pytest.MonkeyPatch.context() as patch:
        if case.layers:
            launch_nowhere(patch)
        for module in () if case.layers else (eager, recorded):
            patch.setattr(module, "try_draw", draw_sevens)

        def on_step(engine: Engine, scheduler: Scheduler, executor: CudaExecutor, number: int) -> None:
            if number == NUM_WARM // 2 and not case.layers:
                count_once(executor, counter, patch)
            elif number == NUM_WARM:
                watch(engine, scheduler, executor, stages, patch)

        serve(case, on_step)
    return figures(case, stages.steps[2 : case.steps - 2], counter.names)


def count_once(executor: CudaExecutor, counter: OpCounter, patch: pytest.MonkeyPatch) -> None:
    """Count the operations of the next step."""
    launch = executor._launch

    def counted(*args: object) -> object:
        patch.setattr(executor, "_launch", launch)
        with counter:
            return launch(*args)  # type: ignore[arg-type]

    patch.setattr(executor, "_launch", counted)


def paced(case: Case) -> float:
    """Return the median time from step to step, in microseconds."""
    times: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (eager, recorded):
            patch.setattr(module, "try_draw", draw_sevens)
        serve(case, lambda engine, scheduler, executor, number: times.append(time.perf_counter()))
    return median(after - before for before, after in pairwise(times[NUM_WARM:])) * 1e6


def figures(case: Case, steps: list[dict[str, int]], names: list[str]) -> dict[str, object]:
    """Return medians in microseconds; what is left of a whole is its `rest`."""
    parts = ("schedule", "tables", "pack", "sampling", "staging", "feed", "landing", "launch rest", "read", "commit",
             "loop rest")  # fmt: skip
    within = ("tables", "pack", "sampling", "staging", "feed", "landing")
    for step in steps:
        step["launch rest"] = step["launch"] - sum(step.get(part, 0) for part in within)
        step["loop rest"] = step["step"] - sum(step.get(part, 0) for part in ("schedule", "launch", "read", "commit"))
    whole = [step["step"] / 1e3 for step in steps]
    return {
        "rows": case.rows,
        "sampling": case.kind,
        "us": {part: round(median(step.get(part, 0) for step in steps) / 1e3, 1) for part in parts},
        "step_us": round(median(whole), 1),
        "step_p90_us": round(quantiles(whole, n=10)[-1], 1),
        "ops": names,
    }


def mixed(args: argparse.Namespace) -> list[dict[str, object]]:
    """Measure steps with a chunk, replayed and kernel by kernel."""
    found = []
    for rows in args.rows:
        case = Case(rows, "greedy", args.context, args.steps, chunk=args.chunk)
        row = least(case, args.rounds)
        row["chunk"] = args.chunk
        for size, layers in LAYERS.items():
            eagerly = least(replace(case, layers=layers), args.rounds)
            added = LEFT_OUT["launches_a_layer"] * LEFT_OUT["us_a_launch"]
            added += LEFT_OUT["products_a_layer"] * LEFT_OUT["us_a_product"]
            predicted = predicted_mixed_us(size, rows, args.chunk, args.context)
            row[f"before_{size}_us"] = eagerly["step_us"]
            row[f"before_{size}_added_us"] = round(layers * added)
            row[f"predicted_{size}_us"] = round(predicted)
            row[f"share_of_predicted_{size}"] = round(row["step_us"] / predicted, 3)  # type: ignore[operator]
            row[f"interval_{size}_us"] = round(paced(replace(case, steps=args.steps // 4, device_us=predicted)))
        found.append(row)
        show(row)
        before = [f"{row[f'before_{size}_us']} + {row[f'before_{size}_added_us']} us as {size}" for size in LAYERS]
        print(f"     kernel by kernel: {', '.join(before)}", flush=True)
    return found


def least(case: Case, rounds: int) -> dict[str, object]:
    """Return the least disturbed of some rounds."""
    return min((measure(case) for _ in range(rounds)), key=lambda found: found["step_us"])  # type: ignore


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=None)
    parser.add_argument("--chunk", type=int, default=0, help="tokens of a prompt in each step")
    parser.add_argument("--context", type=int, default=1100)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="of each batch, of which the least disturbed is kept")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_aside()
    args.rows = args.rows or ([3, 63, 254] if args.chunk else [1, 16, 64, 256])
    found = mixed(args) if args.chunk else decode(args)
    command = f"python bench/gpu_host.py --context {args.context} --steps {args.steps} --rounds {args.rounds}"
    made = {
        "missing_us": MISSING_US,
        "context": args.context,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cpu": detect().cpu,
        "cores": detect().cores,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": command + (f" --chunk {args.chunk}" if args.chunk else ""),
    }
    if args.out is not None:
        # Each kind of step is measured by a command of its own, and keeps what the other one has left.
        known = json.loads(args.out.read_text()) if args.out.exists() else {}
        if args.chunk:
            known["mixed"] = {"steps": found, "left_out": LEFT_OUT, **made}
        else:
            known |= {"decode": found, **made}
        args.out.write_text(json.dumps(known, indent=2) + "\n")
    return 0


def decode(args: argparse.Namespace) -> list[dict[str, object]]:
    """Measure steps of single tokens."""
    found = []
    for kind in SAMPLING:
        for rows in args.rows:
            row = least(case := Case(rows, kind, args.context, args.steps), args.rounds)
            for size in ("8b", "1b"):
                predicted = predicted_us(size, rows, args.context)
                row[f"predicted_{size}_us"] = round(predicted)
                row[f"share_of_predicted_{size}"] = round(row["step_us"] / predicted, 3)  # type: ignore[operator]
                row[f"interval_{size}_us"] = round(paced(replace(case, steps=args.steps // 4, device_us=predicted)))
            found.append(row)
            show(row)
    return found


def show(row: dict[str, object]) -> None:
    """Print one batch size."""
    us = row["us"]
    assert isinstance(us, dict)
    parts = "  ".join(f"{name} {value}" for name, value in us.items())
    shares = ", ".join(f"{row[f'share_of_predicted_{size}']:.1%} of {size}'s {row[f'predicted_{size}_us']} us, "
                       f"a step every {row[f'interval_{size}_us']} us" for size in ("8b", "1b"))  # fmt: skip
    print(f"{row['rows']:>4} rows {row['sampling']:<7} {row['step_us']:>8} us (p90 {row['step_p90_us']})  | {parts}")
    print(f"     predicted: {shares}; ops: {', '.join(row['ops'])}", flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
