"""Whole models of random weights in real shapes, through the executor and the engine: parts of bench/gpu.py.

A model is opened once for each format and goes through decode, decode beside chunks of prompts, prefill and serving.
Times are the host's, from launch to result, which is what an engine sees; `device_ms` beside them is the device's own.
Bytes are those of the weights and of the keys and values that a step reads.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from gpu_report import DEVICE, Report

from headrace.core.clock import MonotonicClock
from headrace.core.protocols import Pending
from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import Quantization
from headrace.core.step import Row, Step, StepResult
from headrace.engine.engine import Engine, StepReport
from headrace.executor.cuda import forms
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.kv import BlockPool
from headrace.model.build import build_program
from headrace.model.config import ModelConfig
from headrace.model.config_hf import config_from_hf
from headrace.model.program import Program
from headrace.quant.formats import Format
from headrace.quant.tensor import Tensor
from headrace.sched import Scheduler, SchedulerLimits, Sequence

BLOCK_SIZE = 32
GREEDY = SamplingParams(temperature=0.0)
# Least shares of the measured bandwidth that decode is to reach.
TARGETS = {
    ("8b", "bf16", "decode", 1): 0.80,
    ("8b", "bf16", "decode", 64): 0.70,
    ("8b", "fp8", "decode", 1): 0.70,
    ("8b", "int4", "decode", 1): 0.70,
    ("1b", "bf16", "decode", 1): 0.65,
}

_BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.625}  # of one weight of a table of embeddings


def llama(size: str) -> ModelConfig:
    """Return the config of a Llama shape: 1b and 8b as Llama 3 has them, tiny for the CPU."""
    hidden, ffn, layers, heads, kv_heads, head_dim, vocab = {
        "tiny": (64, 96, 2, 4, 2, 16, 300),
        "1b": (2048, 8192, 16, 32, 8, 64, 128256),
        "8b": (4096, 14336, 32, 32, 8, 128, 128256),
    }[size]
    return config_from_hf(
        {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
            "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab, "hidden_act": "silu",
            "max_position_embeddings": 256 if size == "tiny" else 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "tie_word_embeddings": size != "8b", "torch_dtype": "bfloat16",
        }
    )  # fmt: skip


class RandomCheckpoint:
    """Random weights of a Program, made when they are asked for. Large ones repeat a random block of rows, and all of
    one shape are alike: what is measured is the device, not numpy."""

    def __init__(self, program: Program) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        for spec in program.weights:
            split = self._split(spec.shape[0], spec.name, program, len(spec.parts))
            for part, rows in zip(spec.parts, split, strict=True):
                self._shapes[part] = (rows, *spec.shape[1:])
        self._random = np.random.default_rng(0)
        self._made: dict[tuple[int, ...], np.ndarray] = {}

    def _split(self, rows: int, name: str, program: Program, parts: int) -> list[int]:
        if parts == 3:  # q, k, v
            layer = program.cache_layers[0]
            kv = layer.kv_heads * layer.head_dim
            return [rows - 2 * kv, kv, kv]
        return [rows // parts] * parts

    def tensor(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            values = self._random.standard_normal(shape).astype(np.float32) * 0.1 + 1.0
            return Tensor(name, Format.F32, shape, values.view(np.uint8).reshape(1, -1))
        if shape not in self._made:
            some = self._random.standard_normal((min(shape[0], 1024), shape[1])).astype(np.float32) / shape[1] ** 0.5
            bits = (some.view(np.uint32) >> 16).astype(np.uint16)
            self._made[shape] = np.resize(bits, shape).view(np.uint8).reshape(shape[0], -1)
        return Tensor(name, Format.BF16, shape, self._made[shape])


@dataclass(frozen=True)
class Load:
    """What is served: `clients` requests at once."""

    clients: int
    prompt: int
    output: int
    step_tokens: int

    @property
    def context(self) -> int:
        """Positions of one sequence, with room to spare."""
        return self.prompt + self.output + BLOCK_SIZE

    @staticmethod
    def of(report: Report) -> Load:
        """Return the load that the targets name, or a small one."""
        return Load(2, 20, 4, 64) if report.is_tiny else Load(256, 1024, 256, 8192)


def opened(
    size: str,
    quantization: Quantization,
    *,
    rows: int,
    context: int,
    max_tokens: int,
    records_graphs: bool = True,
    launches_early: bool = False,
) -> tuple[CudaExecutor, Program]:
    program = build_program(llama(size))
    executor = CudaExecutor(
        program,
        RandomCheckpoint(program),  # type: ignore[arg-type]
        num_blocks=rows * -(-context // BLOCK_SIZE) + 1,
        block_size=BLOCK_SIZE,
        options=DeviceOptions(
            device=DEVICE, max_step_tokens=max_tokens, max_rows=rows, quantization=quantization,
            records_graphs=records_graphs, launches_early=launches_early,
        ),
    )  # fmt: skip
    return executor, program


def models(report: Report) -> None:
    """Measure each model in each format, the largest first: what the targets name comes before what they do not."""
    report.measure_limits()
    chosen = [("tiny", "bf16")]
    if not report.is_tiny:
        chosen = [("8b", "bf16"), ("8b", "fp8"), ("8b", "int4"), ("1b", "bf16"), ("1b", "int4"), ("8b", "int8")]
    load = Load.of(report)
    for size, quantization in chosen:
        name = f"{size} {quantization}"
        if not report.has_time(name, minutes=1.0):
            continue
        with report.row(name, hangs_after=480.0):
            began = time.perf_counter()
            executor, program = opened(
                size, quantization, rows=load.clients, context=load.context, max_tokens=load.step_tokens,  # type: ignore[arg-type]
                launches_early=report.launches_early,
            )  # fmt: skip
            report.add(f"open {name}", s=time.perf_counter() - began, graphs=executor.num_graphs,
                       **memory(executor, program, load))  # fmt: skip
            try:
                for part in (decode, mixed, prefill, serving):
                    with report.row(f"{part.__name__} {name}", hangs_after=330.0):
                        part(report, executor, program, size, quantization)
            finally:
                executor.shutdown()
                del executor
                gc.collect()


def memory(executor: CudaExecutor, program: Program, load: Load) -> dict[str, object]:
    """Return what was planned for beside weights and pool, and what the allocator has really taken for it."""
    planned = forms.scratch_bytes(program, max_step_tokens=load.step_tokens, max_rows=load.clients)
    if DEVICE != "cuda":
        return {"planned_scratch_mib": planned / 2**20}
    pool = forms.kv_block_bytes(program.cache_layers, block_size=BLOCK_SIZE) * (executor.num_blocks + 1)
    free, total = torch.cuda.mem_get_info()
    return {
        "weights_mib": executor.weight_bytes / 2**20,
        "kv_mib": pool / 2**20,
        "planned_scratch_mib": planned / 2**20,
        "real_scratch_mib": (torch.cuda.memory_reserved() - executor.weight_bytes - pool) / 2**20,
        "beside_allocator_mib": (total - free - torch.cuda.memory_reserved()) / 2**20,
    }


def decode(report: Report, executor: CudaExecutor, program: Program, size: str, quantization: str) -> None:
    """Time decode steps, the host's part included, and count the bytes that each needs.

    A step is launched while the one before it runs, as an engine does: its time is that from result to result.
    """
    context = 20 if report.is_tiny else 1024
    num_steps = 6 if report.is_tiny else 60
    for batch in (1, 2) if report.is_tiny else (1, 64, 256):
        per_row = min(executor.num_blocks // batch, context // BLOCK_SIZE + 2)
        took, device, cpu = pace(executor, decode_steps(batch, context, num_steps, per_row), num_steps)
        median = statistics.median(took)
        kv = forms.kv_block_bytes(program.cache_layers, block_size=1) * context * batch
        # The table of embeddings is read row by row; a tied one is the head as well.
        embed = 0.0 if size != "8b" else program.vocab_size * program.hidden_size * _BYTES[quantization]
        share = report.share(median, executor.weight_bytes - embed + kv)
        target = TARGETS.get((size, quantization, "decode", batch))
        report.add(
            f"decode {size} {quantization}, batch {batch}", tok_s=batch / median, ms=median * 1e3,
            p99_ms=sorted(took)[int(len(took) * 0.99)] * 1e3, device_ms=statistics.median(device) * 1e3,
            cpu_share=statistics.median(cpu), **share, **({} if target is None else {"target": target}),
        )  # fmt: skip


def decode_steps(batch: int, context: int, count: int, per_row: int) -> Iterator[Step]:
    """Yield steps of single tokens at positions `context` …; the keys before them are whatever the pool holds."""
    blocks = [tuple(range(r * per_row, (r + 1) * per_row)) for r in range(batch)]
    for i in range(count):
        place = context + i % BLOCK_SIZE  # stays within the blocks that a full house leaves each row
        rows = (Row(SeqId(r), place, (7 + r,), blocks[r], GREEDY, num_output=i) for r in range(batch))
        yield Step(i, tuple(rows))


def pace(executor: CudaExecutor, steps: Iterable[Step], count: int) -> tuple[list[float], list[float], list[float]]:
    """Launch each of `count` steps while the one before it runs; return, of those behind the first sixth, the seconds
    from one result to the next, the device's seconds, and the share that this thread was busy for."""
    took: list[float] = []
    device: list[float] = []
    cpu: list[float] = []
    pending: Pending[StepResult] | None = None
    ended, busy = time.perf_counter(), time.thread_time()
    for i, step in enumerate(steps):
        launched = executor.launch(step)
        if pending is not None:
            result = pending.result()
            if result.failures:
                raise RuntimeError(f"rows failed: {result.failures}")
            now, used = time.perf_counter(), time.thread_time()
            if i > count // 6:
                took.append(now - ended)
                cpu.append((used - busy) / took[-1])
                device.append(result.elapsed_s)
            ended, busy = now, used
        pending = launched
    assert pending is not None
    pending.result()
    return took, device, cpu


def mixed(report: Report, executor: CudaExecutor, program: Program, size: str, quantization: str) -> None:
    """Time steps in which rows decode beside a chunk of a prompt, as a loaded server has them, one launched while the
    one before it runs; what replaying leaves the host to do is its share of the time."""
    context, chunk, num_steps = (20, 12, 4) if report.is_tiny else (1024, 512, 30)
    for batch in (1,) if report.is_tiny else (3, 63, 255):
        per_row = min(executor.num_blocks // (batch + 1), context // BLOCK_SIZE + 2)
        blocks = tuple(range(batch * per_row, (batch + 1) * per_row))
        has_two = 2 * chunk <= per_row * BLOCK_SIZE  # parts of the prompt, in turn
        tokens = np.random.default_rng(3).integers(0, program.vocab_size, chunk).tolist()
        steps = (
            Step(i, (*step.rows, Row(SeqId(batch), i % 2 * chunk if has_two else 0, tuple(tokens), blocks, GREEDY)))
            for i, step in enumerate(decode_steps(batch, context, num_steps, per_row))
        )
        took, device, cpu = pace(executor, steps, num_steps)
        median = statistics.median(took)
        report.add(
            f"{chunk} tokens of a prompt beside {batch} rows, {size} {quantization}", tok_s=(batch + chunk) / median,
            ms=median * 1e3, device_ms=statistics.median(device) * 1e3, cpu_share=statistics.median(cpu),
        )  # fmt: skip


def prefill(report: Report, executor: CudaExecutor, program: Program, size: str, quantization: str) -> None:
    """Time one prompt in one step."""
    for tokens in (40,) if report.is_tiny else (4096, 8192):
        prompt = np.random.default_rng(1).integers(0, program.vocab_size, tokens).tolist()
        blocks = tuple(range(-(-tokens // BLOCK_SIZE)))
        row = Row(SeqId(0), 0, tuple(prompt), blocks, GREEDY)
        took, device = [], []
        for i in range(2 if report.is_tiny else 8):
            started = time.perf_counter()
            result = executor.launch(Step(i, (row,))).result()
            took.append(time.perf_counter() - started)
            device.append(result.elapsed_s)
        median = statistics.median(took[1:])
        layers = [spec for spec in program.weights if spec.name not in ("embed", "head") and len(spec.shape) == 2]
        flops = 2.0 * tokens * sum(spec.shape[0] * spec.shape[1] for spec in layers)
        report.add(f"prefill {size} {quantization}, {tokens} tokens", tok_s=tokens / median, ms=median * 1e3,
                   device_ms=statistics.median(device[1:]) * 1e3,
                   of_flops=flops / median / report.limits["flops"])  # fmt: skip


def serving(report: Report, executor: CudaExecutor, program: Program, size: str, quantization: str) -> None:
    """Serve many clients at once through the engine, in this process."""
    load = Load.of(report)
    name = f"serving {size} {quantization}, {load.clients} clients, {load.prompt} in, {load.output} out"
    if report.has_time(name):
        report.add(name, **serve(executor, load))


def prompts(load: Load) -> list[list[int]]:
    draw = np.random.default_rng(2)
    return [draw.integers(0, 256, load.prompt).tolist() for _ in range(load.clients)]


class _Keeper:
    """Lends an executor to an engine, which shuts down what it is given when it ends."""

    def __init__(self, executor: CudaExecutor) -> None:
        self.num_blocks, self.block_size, self.launch = executor.num_blocks, executor.block_size, executor.launch

    def shutdown(self) -> None:
        return


def serve(executor: CudaExecutor, load: Load) -> dict[str, object]:
    """Serve every client once; return throughput, gaps between tokens, and the host's share of the time."""
    limits = SchedulerLimits(
        max_num_seqs=load.clients, max_step_tokens=load.step_tokens, chunk_tokens=min(512, load.step_tokens),
        chunk_grows=False, max_context=load.context - 1, max_waiting=load.clients, plans_ahead=True,
    )  # fmt: skip
    scheduler = Scheduler(BlockPool(executor.num_blocks), executor.block_size, limits)
    engine = Engine(scheduler, _Keeper(executor), MonotonicClock())
    times: dict[SeqId, list[float]] = {}
    errors: list[str] = []
    loop: list[tuple[float, float, float]] = []  # wall, the engine thread's CPU, the device, after each step

    def deliver(report: StepReport) -> None:
        now = time.perf_counter()
        for event in report.events:
            if event.error is not None:
                errors.append(event.error)
            if event.sample is not None:
                times.setdefault(event.seq_id, []).append(now)
        if report.step is not None:
            loop.append((now, time.thread_time(), report.step.device_s))

    engine.start(deliver)
    engine.ready.result(timeout=300)
    began = time.perf_counter()
    for client, tokens in enumerate(prompts(load)):
        engine.submit([Sequence(SeqId(client), tokens, GREEDY, max_tokens=load.output)])
    deadline = began + 240
    while sum(map(len, list(times.values()))) < load.clients * load.output and time.perf_counter() < deadline:
        if engine.dead.done():
            break
        time.sleep(0.01)
    engine.stop()
    engine.dead.result(timeout=60)
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed: {errors[0]}")
    count = sum(map(len, times.values()))
    if count < load.clients * load.output:
        raise RuntimeError(f"{count} of {load.clients * load.output} tokens came within four minutes")
    return figures(began, list(times.values()), load) | {
        "cpu_share": (loop[-1][1] - loop[0][1]) / (loop[-1][0] - loop[0][0]),
        "device_share": sum(device for _, _, device in loop[1:]) / (loop[-1][0] - loop[0][0]),
    }


def figures(began: float, times: list[list[float]], load: Load) -> dict[str, object]:
    """Return throughput and gaps of tokens that came at these times."""
    took = max(own[-1] for own in times) - began
    gaps = sorted(after - before for own in times for before, after in pairwise(own))
    count = sum(map(len, times))
    median, late = statistics.median(gaps), gaps[int(len(gaps) * 0.99)]
    return {
        "out_tok_s": count / took,
        "all_tok_s": (count + load.clients * load.prompt) / took,
        "itl_ms": median * 1e3,
        "itl_p99_ms": late * 1e3,
        "p99_of_median": late / median,
        "ttft_ms": statistics.median(own[0] - began for own in times) * 1e3,
    }
