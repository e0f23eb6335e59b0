"""What a step costs here: steps of many shapes, timed on the real executor and fitted for the simulator.

Owns the shapes. Rows and chunks are of random tokens over blocks that hold nothing: time does not depend on what is in
them. Medians over repeats, after one that is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from statistics import median

import msgspec

from headrace.app import backends
from headrace.app.loading import OpenedModel
from headrace.core.protocols import Executor
from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.sim import StepTimes
from headrace.sim.step_times import fit, step_terms

_GREEDY = SamplingParams(temperature=0.0)
_REPEATS = 3
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_CHUNKS = (16, 64, 128, 256, 512)
_CONTEXTS = (0, 128, 512, 1536, 6144)


class Shape:
    """One step to time: `num_rows` single tokens and a chunk of `chunk`, each after `context` tokens."""

    def __init__(self, num_rows: int, chunk: int, context: int) -> None:
        self.num_rows = num_rows
        self.chunk = chunk
        self.context = context

    @property
    def members(self) -> list[tuple[int, int]]:
        """Return (start, count) of each member."""
        return [(self.context, 1)] * self.num_rows + ([(self.context, self.chunk)] if self.chunk else [])

    def step(self, step_id: int, block_size: int, random: Random, vocab_size: int) -> Step:
        """Make the step, each member with blocks of its own."""
        rows: list[Row] = []
        first = 0
        for number, (start, count) in enumerate(self.members):
            num_blocks = -(-(start + count) // block_size)
            tokens = [random.randrange(vocab_size) for _ in range(count)]
            blocks = tuple(range(first, first + num_blocks))
            rows.append(Row(SeqId(number), start, tokens, blocks, _GREEDY))
            first += num_blocks
        return Step(step_id, tuple(rows))


def shapes(num_tokens: int, max_context: int, max_rows: int, max_step_tokens: int) -> Iterator[Shape]:
    """Yield the shapes that fit a pool of `num_tokens`."""
    combined = [(rows, 0) for rows in _ROWS] + [(0, chunk) for chunk in _CHUNKS] + [(8, 128), (32, 256)]
    for rows, chunk in combined:
        for context in _CONTEXTS:
            slack = 64 * (rows + 1)  # no block is shared, so each member may waste most of one
            is_small = rows * (context + 1) + chunk + context + slack <= num_tokens
            is_legal = context + max(chunk, 1) < max_context and rows <= max_rows and rows + chunk <= max_step_tokens
            if is_small and is_legal:
                yield Shape(rows, chunk, context)


def measure_model(opened: OpenedModel, progress: Callable[[int, int], None]) -> StepTimes:
    """Load a model and measure it. Closes `opened`."""
    plan, program = opened.plan, opened.program
    try:
        executor = backends.open_executor(plan, program, opened.checkpoint, cache_directory=opened.cache)
    finally:
        opened.close()
    backends.settle(executor)
    weights = "as stored" if plan.quantization.value == "auto" else plan.quantization.value
    values = "" if plan.kv_dtype.value == "auto" else f", KV {plan.kv_dtype.value}"
    kept = f"weights {weights}{values}"
    source = f"measured: {plan.model}, {plan.backend.value} backend, {kept}, {plan.threads.value} threads"
    num_tokens = executor.num_blocks * executor.block_size
    todo = list(shapes(num_tokens, plan.max_context.value, plan.max_num_seqs.value, plan.max_step_tokens.value))
    try:
        times = measure_step_times(executor, todo, program.vocab_size, source, progress)
        return msgspec.structs.replace(times, on_device=plan.backend.value == "cuda")
    finally:
        executor.shutdown()


def measure_step_times(
    executor: Executor,
    todo: list[Shape],
    vocab_size: int,
    source: str,
    progress: Callable[[int, int], None],
) -> StepTimes:
    """Time every shape and fit. `progress(done, all)` is called after each."""
    random = Random(0)
    observed: list[tuple[tuple[int, int, int, float], float]] = []
    for number, shape in enumerate(todo):
        elapsed: list[float] = []
        for repeat in range(_REPEATS + 1):
            step = shape.step(number * (_REPEATS + 1) + repeat, executor.block_size, random, vocab_size)
            elapsed.append(executor.launch(step).result().elapsed_s)
        observed.append((step_terms(shape.members), median(elapsed[1:])))
        progress(number + 1, len(todo))
    return fit(observed, source)
