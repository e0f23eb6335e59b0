"""Whole models on the device against the numpy specification, and graphs against the same steps op by op: parts of
bench/gpu.py.

Parity: tiny random checkpoints of every family, prompts in chunks and decode side by side; in fp32 the same greedy
tokens, in the other formats log probabilities near those of the specification.
Graphs: bit for bit, since the kernels are the same.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gpu_models import BLOCK_SIZE as PAGE
from gpu_models import GREEDY, opened
from gpu_report import DEVICE, Report

from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import Quantization
from headrace.core.step import Row, Step, StepResult
from headrace.executor import ReferenceExecutor
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.testing.checkpoints import FAMILIES, write_checkpoint

BLOCKS, BLOCK_SIZE = 40, 16
# Mean distance of log probabilities that rounding to a format may cause: these sharp little models lose most to 4 bits.
NEAR: dict[Quantization, float] = {"bf16": 0.05, "int8": 0.08, "int4": 0.8, "fp8": 0.3}
_SANITIZER_MINUTES = 6


def checks(report: Report) -> None:
    """Compare with the specification, and replay with the same steps op by op."""
    with tempfile.TemporaryDirectory() as folder:
        families = FAMILIES[:1] if report.is_tiny else FAMILIES
        for family in families:
            path = write_checkpoint(Path(folder) / family, family)
            with report.row(f"tokens of {family}, fp32"):
                found, expected = (generate(make, path) for make in (on_device, reference))
                report.add(f"tokens of {family}, fp32", right=found == expected)
        path = write_checkpoint(Path(folder) / "near", "qwen3")
        for quantization, limit in list(NEAR.items())[: 1 if report.is_tiny else None]:
            with report.row(f"log probabilities of {quantization}"):
                report.add(f"log probabilities of {quantization}", **near(path, quantization, limit))
    for size, quantization in (
        (("tiny", "bf16"),) if report.is_tiny else (("tiny", "bf16"), ("1b", "bf16"), ("1b", "int4"))
    ):
        name = f"graphs of {size} {quantization} against single ops"
        if report.has_time(name):
            with report.row(name):
                report.add(name, **graphs_equal_ops(size, quantization, is_early=report.launches_early))  # type: ignore[arg-type]


def on_device(path: Path, dtype: str = "float32", quantization: Quantization = "auto") -> CudaExecutor:
    with open_checkpoint(path) as checkpoint:
        return CudaExecutor(
            build_program(checkpoint.config), checkpoint, num_blocks=BLOCKS, block_size=BLOCK_SIZE,
            options=DeviceOptions(
                device=DEVICE, dtype=dtype, max_rows=4, max_step_tokens=64, quantization=quantization
            ),
        )  # fmt: skip


def reference(path: Path) -> ReferenceExecutor:
    with open_checkpoint(path) as checkpoint:
        return ReferenceExecutor(build_program(checkpoint.config), checkpoint, num_blocks=BLOCKS, block_size=BLOCK_SIZE)


def generate(make: type[CudaExecutor] | object, path: Path) -> list[list[int]]:
    """Return greedy tokens of three prompts, prefilled in chunks of 10 and decoded side by side."""
    executor = make(path)  # type: ignore[operator]
    random = np.random.RandomState(1)
    texts = [random.randint(0, 256, length).tolist() for length in (1, 9, 18)]
    lengths, done, count = [len(text) for text in texts], [0, 0, 0], 6
    step_id = 0
    while any(len(text) < length + count for text, length in zip(texts, lengths, strict=True)):
        rows = []
        for i, text in enumerate(texts):
            if len(text) == lengths[i] + count:
                continue
            stop = min(done[i] + 10, len(text))
            blocks = tuple(range(i * 10, i * 10 + -(-stop // BLOCK_SIZE)))
            sampling = GREEDY if stop == len(text) else None
            rows.append(Row(SeqId(i), done[i], tuple(text[done[i] : stop]), blocks, sampling))
            done[i] = stop
        result = executor.launch(Step(step_id, tuple(rows))).result()
        for row, sample in zip(rows, result.samples, strict=True):
            if sample is not None:
                texts[row.seq_id].append(sample.token_id)
        if result.failures:
            raise RuntimeError(f"rows failed: {result.failures}")
        step_id += 1
    executor.shutdown()
    return texts


def near(path: Path, quantization: Quantization, limit: float) -> dict[str, object]:
    """Return how far log probabilities of a prompt are from the specification's."""
    prompt = np.random.RandomState(3).randint(0, 256, 30).tolist()
    score = tuple((i, token) for i, token in enumerate(prompt[1:]))
    step = Step(0, (Row(SeqId(1), 0, tuple(prompt), (0, 1), None, score=score, num_score_top=3),))
    results: list[StepResult] = []
    for executor in (on_device(path, "bfloat16", quantization), reference(path)):
        results.append(executor.launch(step).result())
        executor.shutdown()
    pairs = zip(results[0].scored[0], results[1].scored[0], strict=True)
    distance = float(np.mean([abs(a.logprob - b.logprob) for a, b in pairs]))
    return {"distance": distance, "limit": limit, "right": math.isfinite(distance) and distance < limit}


def graphs_equal_ops(size: str, quantization: Quantization, *, is_early: bool) -> dict[str, object]:
    """Compute the same rows from replayed graphs and op by op, single tokens and these beside two parts of a prompt;
    return whether tokens and log probabilities are equal.

    is_early  the graphs' kernels are set up before their turn, single ops never"""
    params = SamplingParams(temperature=0.8, seed=5, logprobs=2)
    parts = (14, 6) if size == "tiny" else (90, 30)  # of a prompt: the vendor's library multiplies the longer one
    widths = (2, 1, 2) if size == "tiny" else (5, 3, 1, 5, 2)  # rows that decode, step by step
    found, num_graphs = [], 0
    for records_graphs in (True, False):
        executor, program = opened(
            size, quantization, rows=6, context=max(64, sum(parts)), max_tokens=64 if size == "tiny" else 192,
            records_graphs=records_graphs, launches_early=is_early and records_graphs,
        )  # fmt: skip
        random = np.random.RandomState(4)
        prompt = random.randint(0, program.vocab_size, (max(widths), 20)).tolist()
        late = random.randint(0, program.vocab_size, sum(parts)).tolist()
        rows = [Row(SeqId(i), 0, tuple(text), (2 * i, 2 * i + 1), params) for i, text in enumerate(prompt)]
        blocks = tuple(range(10, 10 + -(-sum(parts) // PAGE)))
        own = [executor.launch(Step(i, (row,))).result().samples for i, row in enumerate(rows)]
        last = [samples[0] for samples in own]
        for n, width in enumerate(widths):
            decoding = tuple(
                Row(SeqId(i), 20 + n, (0 if sample is None else sample.token_id,), (2 * i, 2 * i + 1), params,
                    num_output=n + 1) for i, sample in enumerate(last[:width])
            )  # fmt: skip
            if n < len(parts):
                start, end = sum(parts[:n]), sum(parts[: n + 1])
                decoding += (Row(SeqId(9), start, tuple(late[start:end]), blocks, params),)
            samples = executor.launch(Step(10 + n, decoding)).result().samples
            own.append(samples)
            last[:width] = samples[:width]
        found.append(own)
        num_graphs = max(num_graphs, executor.num_graphs)
        executor.shutdown()
    return {"right": found[0] == found[1] and all(None not in samples for samples in found[0]), "graphs": num_graphs}


def sanitizer(report: Report) -> None:
    """Run every kernel on small shapes under compute-sanitizer, if it is there: no bad address, no race."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None or DEVICE != "cuda":
        report.add("compute-sanitizer", skipped="not on this machine" if tool is None else "there is no GPU")
        return
    script = str(Path(__file__).with_name("gpu.py"))
    # A tensor of its own for each buffer: within one large allocation, a bad address is a good one.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for check in ("memcheck", "racecheck"):
        name = f"compute-sanitizer {check}"
        if not report.has_time(name, minutes=1.0):
            continue
        with report.row(name, hangs_after=480.0), tempfile.TemporaryDirectory() as folder:
            command = [tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "5",
                       sys.executable, script, "--part", "kernels", "--tiny", "--untimed", "--out", folder]  # fmt: skip
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False,
                timeout=min(report.seconds_left(), 60 * _SANITIZER_MINUTES),
            )  # fmt: skip
            lines = [line for line in done.stdout.splitlines() if line.startswith("=========")]
            report.add(name, right=done.returncode == 0, says=" | ".join(line.strip("= ") for line in lines[-3:]))
            if done.returncode:
                print(*lines[:40], done.stderr[-2000:], sep="\n", flush=True)
