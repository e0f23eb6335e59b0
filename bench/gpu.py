"""Measure the cuda backend on this machine's GPU: kernels, decode, prefill, serving. Needs torch and Triton only.

    python bench/gpu.py --part kernels          every kernel against float64, then timed, as shares of the limits
    python bench/gpu.py --part decode           whole models of random weights, tok/s by format and batch
    python bench/gpu.py --part prefill          the same with long prompts
    python bench/gpu.py --part serving          the engine in this process, 1024 tokens in, 256 out
    python bench/gpu.py --part kernels --tiny   the same on small shapes; also on a CPU, in Triton's interpreter

Times are medians over CUDA events; kernels read from a ring of buffers larger than the L2 cache; data is random. The
limits (copying, a large bf16 product) are measured in the same run. Results: a table, and bench-results/gpu-PART.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined

import triton

from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import Quantization
from headrace.core.step import Row, Step
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.executor.cuda.forms import kv_block_bytes
from headrace.kv import BlockPool
from headrace.model.build import build_program
from headrace.model.config import ModelConfig
from headrace.model.config_hf import config_from_hf
from headrace.model.program import Program
from headrace.ops.cuda import launching
from headrace.ops.cuda.attention import Scoring, Tiles, attention, tile_size
from headrace.ops.cuda.linear import Epilogue, linear
from headrace.ops.cuda.norm import rms_norm
from headrace.ops.cuda.sampling import NUM_FLOATS, NUM_INTS, Lines, try_draw
from headrace.ops.cuda.weights import Weight, dense, fp8, int4, int8
from headrace.quant.formats import Format
from headrace.quant.tensor import Tensor
from headrace.sched import Scheduler, SchedulerLimits, Sequence

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KIND = torch.bfloat16
BLOCK_SIZE = 32
RING_BYTES = 256 << 20  # several times the L2 cache of an H200
FORMS: dict[str, Callable[[torch.Tensor], Weight]] = {
    "bf16": lambda values: dense(values.to(KIND)),
    "int8": int8,
    "int4": int4,
    "fp8": fp8,
}


@dataclass
class Report:
    """Rows of a table, printed as they come."""

    part: str
    is_tiny: bool
    limits: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, object]] = field(default_factory=list)

    def add(self, name: str, **figures: object) -> None:
        self.rows.append({"what": name, **figures})
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        print(f"{name:<58} {shown}", flush=True)

    def write(self, folder: Path) -> None:
        facts = {
            "part": self.part,
            "date": date.today().isoformat(),
            "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu, interpreted: times mean nothing",
            "torch": torch.__version__,
            "triton": triton.__version__,
            "tiny": self.is_tiny,
            "limits": self.limits,
            "failed_kernels": launching.failed_kernels(),
            "rows": self.rows,
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"gpu-{self.part}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"written: {path}")


def seconds(calls: list[Callable[[], object]], *, tries: int = 30) -> float:
    """Return the median seconds of one call, going round the calls so that none finds its data in the cache."""
    if DEVICE != "cuda":
        started = time.perf_counter()
        calls[0]()
        return time.perf_counter() - started
    for call in calls[:3]:
        call()
    torch.cuda.synchronize()
    times = []
    for i in range(max(tries, len(calls))):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        calls[i % len(calls)]()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return statistics.median(times)


def ring(num_bytes: int) -> int:
    """Return how many copies of a buffer leave the cache."""
    return 1 if DEVICE != "cuda" else max(-(-RING_BYTES // max(num_bytes, 1)), 2)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def measure_limits(report: Report) -> None:
    """Measure what a copy and a large product reach here."""
    size = 1 << (20 if report.is_tiny else 31)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    n = 128 if report.is_tiny else 8192
    a, b = random(n, n).to(KIND), random(n, n).to(KIND)
    report.limits = {
        "bytes_per_s": 2 * size / seconds([lambda: target.copy_(source)]),
        "flops": 2 * n**3 / seconds([lambda: a @ b]),
    }
    copied, multiplied = (report.limits[name] / 1e12 for name in ("bytes_per_s", "flops"))
    print(f"copy {copied:.2f} TB/s, bf16 product {multiplied:.0f} TFLOP/s")


def kernels(report: Report) -> None:
    """Check each kernel against float64, then time it."""
    is_tiny = report.is_tiny
    shapes = [(64, 128)] if is_tiny else [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]
    for n, k in shapes:
        for form in FORMS:
            for tokens in (1,) if is_tiny else (1, 16, 64):
                linear_row(report, form, n, k, tokens)
    for d in (64,) if is_tiny else (64, 80, 96, 128, 256):
        for rows, context in ((2, 70),) if is_tiny else ((1, 16384), (64, 2048)):
            decode_row(report, d, rows, context)
        prefill_row(report, d, 40 if is_tiny else 4096)
    tokens, width = (2, 128) if is_tiny else (4096, 4096)
    x, weight, out = random(tokens, width), random(width), torch.empty((tokens, width), dtype=KIND, device=DEVICE)
    rms_norm(x, weight, out, eps=1e-5)
    wide = x.double()
    expected = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    took = seconds([lambda: rms_norm(x, weight, out, eps=1e-5)])
    moved = share(report, took, tokens * width * 6)
    report.add(f"norm, {tokens} x {width}", error=error(out, expected), us=took * 1e6, **moved)
    for lines in (1,) if is_tiny else (1, 64):
        draw_row(report, lines, 300 if is_tiny else 128256)


def share(report: Report, took: float, num_bytes: float, flops: float = 0.0) -> dict[str, float]:
    found = {"of_bandwidth": num_bytes / took / report.limits["bytes_per_s"]}
    return found | ({"of_flops": flops / took / report.limits["flops"]} if flops else {})


def linear_row(report: Report, form: str, n: int, k: int, tokens: int) -> None:
    values = random(n, k) / k**0.5
    weight = FORMS[form](values)
    x = random(tokens, k).to(KIND)
    outs = torch.full((tokens, n), torch.nan, dtype=KIND, device=DEVICE)
    linear(x, weight, outs, epilogue=Epilogue())
    some = slice(0, 256)
    wrong = error(outs[:, some], x.double() @ weight.rows(some).double().T)
    copies = [FORMS[form](values) for _ in range(min(ring(weight.num_bytes), 32))]
    took = seconds([lambda w=w: linear(x, w, outs, epilogue=Epilogue()) for w in copies])
    num_bytes = weight.num_bytes + 2 * tokens * (n + k)
    report.add(f"linear {form}, {tokens} tokens, {n} x {k}", error=wrong, us=took * 1e6,
               **share(report, took, num_bytes, 2.0 * n * k * tokens))  # fmt: skip


def paged(d: int, rows: int, context: int, kv_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a cache and block tables, blocks in random order."""
    per_row = -(-context // BLOCK_SIZE)
    cache = random(rows * per_row, 2, kv_heads, BLOCK_SIZE, d).to(KIND)
    order = torch.randperm(rows * per_row, dtype=torch.int32, device=DEVICE)
    return cache, order.view(rows, per_row)


def exact_attention(q: torch.Tensor, cache: torch.Tensor, table: torch.Tensor, first: int, d: int) -> torch.Tensor:
    """Return float64 attention of tokens at positions `first` … over one row."""
    kv_heads, length = cache.shape[2], first + len(q)
    held = cache[table.long()].double().permute(1, 2, 0, 3, 4).reshape(2, kv_heads, -1, d)[:, :, :length]
    heads = q.view(len(q), kv_heads, -1, d).double().permute(1, 2, 0, 3)
    s = heads @ held[0][:, None].transpose(-1, -2) * d**-0.5
    own = torch.arange(first, length, device=q.device)[:, None]
    s = s.masked_fill(torch.arange(length, device=q.device) > own, float("-inf"))
    return (torch.softmax(s, -1) @ held[1][:, None]).permute(2, 0, 1, 3).reshape(len(q), -1)


def decode_row(report: Report, d: int, rows: int, context: int) -> None:
    q_heads, kv_heads = (4, 2) if report.is_tiny else (32, 8)
    cache, tables = paged(d, rows, context, kv_heads)
    q = random(rows, q_heads * d).to(KIND)
    out = torch.full_like(q, torch.nan)
    at = torch.arange(rows, dtype=torch.int32, device=DEVICE)
    parts = min(max(264 // (rows * kv_heads), 1), 32)
    tiles = Tiles(rows=at, first=at, count=torch.ones_like(at), size=1, num_parts=parts)
    positions = torch.full((rows,), context - 1, dtype=torch.int32, device=DEVICE)
    attention(q, out, cache, tables, tiles, positions, Scoring(scale=d**-0.5))
    wrong = error(out[:1], exact_attention(q[:1], cache, tables[0], context - 1, d))
    copies = [cache.clone() for _ in range(min(ring(cache.nbytes), 8))]
    took = seconds([lambda c=c: attention(q, out, c, tables, tiles, positions, Scoring(scale=d**-0.5)) for c in copies])
    report.add(f"decode attention, D {d}, {rows} rows of {context}", error=wrong, us=took * 1e6,
               **share(report, took, cache.nbytes))  # fmt: skip


def prefill_row(report: Report, d: int, tokens: int) -> None:
    q_heads, kv_heads = (4, 2) if report.is_tiny else (32, 8)
    cache, tables = paged(d, 1, tokens, kv_heads)
    q = random(tokens, q_heads * d).to(KIND)
    out = torch.full_like(q, torch.nan)
    size = tile_size(q_heads // kv_heads, d)
    first = torch.arange(0, tokens, size, dtype=torch.int32, device=DEVICE)
    count = torch.clamp(tokens - first, max=size)
    tiles = Tiles(rows=torch.zeros_like(first), first=first, count=count, size=size, num_parts=1)
    positions = torch.arange(tokens, dtype=torch.int32, device=DEVICE)
    attention(q, out, cache, tables, tiles, positions, Scoring(scale=d**-0.5))
    few = min(tokens, 256)
    wrong = error(out[:few], exact_attention(q[:few], cache, tables[0], 0, d))
    took = seconds([lambda: attention(q, out, cache, tables, tiles, positions, Scoring(scale=d**-0.5))])
    report.add(f"prefill attention, D {d}, {tokens} tokens", error=wrong, us=took * 1e6,
               **share(report, took, cache.nbytes + 2 * q.nbytes, 2.0 * tokens * tokens * q_heads * d))  # fmt: skip


def draw_row(report: Report, lines: int, vocab: int) -> None:
    logits = random(lines, vocab) * 3
    for name, (temperature, top_p) in {"greedy": (0.0, 1.0), "top-p 0.9": (1.0, 0.9)}.items():
        floats = torch.zeros((lines, NUM_FLOATS), dtype=torch.float64)
        floats[:, 0], floats[:, 1], floats[:, 3] = temperature, top_p, 1.0
        ints = torch.zeros((lines, NUM_INTS), dtype=torch.int32)
        ints[:, 4] = -1
        ready = Lines(floats=floats.to(DEVICE), ints=ints.to(DEVICE))
        out = try_draw(logits, ready, None, num_top=None)
        assert out is not None
        right = temperature > 0 or bool((out[:, 0].long() == logits.argmax(-1)).all())
        took = seconds([lambda r=ready: try_draw(logits, r, None, num_top=None)])
        moved = share(report, took, logits.nbytes)
        report.add(f"draw {name}, {lines} rows of {vocab}", right=right, us=took * 1e6, **moved)


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
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "tie_word_embeddings": size != "8b", "torch_dtype": "bfloat16",
        }
    )  # fmt: skip


class RandomCheckpoint:
    """Random weights of a Program, made when they are asked for. Large ones repeat a random block of rows."""

    def __init__(self, program: Program) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        for spec in program.weights:
            split = self._split(spec.shape[0], spec.name, program, len(spec.parts))
            for part, rows in zip(spec.parts, split, strict=True):
                self._shapes[part] = (rows, *spec.shape[1:])
        self._random = np.random.default_rng(0)

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
        some = self._random.standard_normal((min(shape[0], 1024), shape[1])).astype(np.float32) / shape[1] ** 0.5
        bits = (some.view(np.uint32) >> 16).astype(np.uint16)
        return Tensor(name, Format.BF16, shape, np.resize(bits, shape).view(np.uint8).reshape(shape[0], -1))


def opened(
    size: str, quantization: Quantization, *, rows: int, context: int, max_tokens: int
) -> tuple[CudaExecutor, Program]:
    program = build_program(llama(size))
    executor = CudaExecutor(
        program,
        RandomCheckpoint(program),  # type: ignore[arg-type]
        num_blocks=rows * -(-context // BLOCK_SIZE) + 1,
        block_size=BLOCK_SIZE,
        options=DeviceOptions(device=DEVICE, max_step_tokens=max_tokens, max_rows=rows, quantization=quantization),
    )
    return executor, program


def models(report: Report) -> Iterator[tuple[str, Quantization]]:
    for size in ("tiny",) if report.is_tiny else ("1b", "8b"):
        for quantization in ("bf16", "fp8", "int4"):
            yield size, quantization  # type: ignore[misc]


def decode(report: Report) -> None:
    """Time decode steps, the host's part included, and count the bytes that each needs."""
    context = 40 if report.is_tiny else 1024
    greedy = SamplingParams(temperature=0.0)
    for size, quantization in models(report):
        batches = (1, 2) if report.is_tiny else (1, 64)
        executor, program = opened(size, quantization, rows=batches[-1], context=context + 64, max_tokens=batches[-1])
        per_row = -(-(context + 64) // BLOCK_SIZE)
        blocks = [tuple(range(r * per_row, (r + 1) * per_row)) for r in range(batches[-1])]
        for batch in batches:
            steps = [
                Step(i, tuple(
                    Row(SeqId(r), context + i, (7 + r,), blocks[r], greedy, num_output=i) for r in range(batch)
                ))
                for i in range(2 if report.is_tiny else 60)
            ]  # fmt: skip
            for step in steps[: max(len(steps) // 6, 1)]:
                executor.launch(step).result()
            times = []
            for step in steps[len(steps) // 6 :]:
                started = time.perf_counter()
                executor.launch(step).result()
                times.append(time.perf_counter() - started)
            took = statistics.median(times)
            kv = kv_block_bytes(program.cache_layers, block_size=1) * context * batch
            embed = 0 if size == "1b" else program.vocab_size * program.hidden_size * 2
            report.add(f"decode {size} {quantization}, batch {batch}", tok_s=batch / took, ms=took * 1e3,
                       p99_ms=sorted(times)[int(len(times) * 0.99)] * 1e3,
                       **share(report, took, executor.weight_bytes - embed + kv))  # fmt: skip
        executor.shutdown()


def prefill(report: Report) -> None:
    """Time one prompt in one step."""
    for size, quantization in models(report):
        for tokens in (40,) if report.is_tiny else (2048, 8192):
            executor, program = opened(size, quantization, rows=1, context=tokens, max_tokens=tokens)
            prompt = np.random.default_rng(1).integers(0, program.vocab_size, tokens).tolist()
            blocks = tuple(range(-(-tokens // BLOCK_SIZE)))
            row = Row(SeqId(0), 0, tuple(prompt), blocks, SamplingParams(temperature=0.0))
            executor.launch(Step(0, (row,))).result()
            times = []
            for i in range(1 if report.is_tiny else 8):
                started = time.perf_counter()
                executor.launch(Step(i + 1, (row,))).result()
                times.append(time.perf_counter() - started)
            took = statistics.median(times)
            layers = [spec for spec in program.weights if spec.name not in ("embed", "head")]
            flops = 2.0 * tokens * sum(spec.shape[0] * spec.shape[1] for spec in layers if len(spec.shape) == 2)
            report.add(f"prefill {size} {quantization}, {tokens} tokens", tok_s=tokens / took, ms=took * 1e3,
                       of_flops=flops / took / report.limits["flops"])  # fmt: skip
            executor.shutdown()


def serving(report: Report) -> None:
    """Run the scheduler and the executor in a loop: many clients, long prompts, as the engine thread does."""
    for size, quantization in models(report):
        clients, prompt, output = (2, 20, 4) if report.is_tiny else (256, 1024, 256)
        max_tokens = 64 if report.is_tiny else 8192
        context = prompt + output + BLOCK_SIZE
        executor, _ = opened(size, quantization, rows=clients, context=context, max_tokens=max_tokens)
        report.add(f"serving {size} {quantization}, {clients} clients, {prompt} in, {output} out",
                   **serve(executor, clients, prompt, output, max_tokens))  # fmt: skip
        executor.shutdown()


def serve(executor: CudaExecutor, clients: int, prompt: int, output: int, max_tokens: int) -> dict[str, object]:
    """Serve every client once; return throughput, gaps between tokens, and the host's share of a step."""
    limits = SchedulerLimits(
        max_num_seqs=clients, max_step_tokens=max_tokens, max_context=prompt + output + 1, max_waiting=clients
    )
    scheduler = Scheduler(BlockPool(executor.num_blocks), executor.block_size, limits)
    draw = np.random.default_rng(2)
    params = SamplingParams(temperature=0.0)
    for client in range(clients):
        tokens = draw.integers(0, 256, prompt).tolist()
        scheduler.submit(Sequence(SeqId(client), tokens, params, max_tokens=output), 0.0)
    began = time.perf_counter()
    last: dict[SeqId, float] = {}
    gaps: list[float] = []
    shares: list[float] = []
    count = 0
    while scheduler.can_work:
        started, cpu = time.perf_counter(), time.thread_time()
        step = scheduler.schedule(started)
        assert step is not None
        result = executor.launch(step).result()
        now = time.perf_counter()
        for event in scheduler.commit(step, result, now):
            if event.sample is not None:
                count += 1
                if event.seq_id in last:
                    gaps.append(now - last[event.seq_id])
                last[event.seq_id] = now
        shares.append((time.thread_time() - cpu) / (time.perf_counter() - started))
    took = time.perf_counter() - began
    gaps.sort()
    return {
        "out_tok_s": count / took,
        "all_tok_s": (count + clients * prompt) / took,
        "itl_ms": statistics.median(gaps) * 1e3,
        "itl_p99_ms": gaps[int(len(gaps) * 0.99)] * 1e3,
        "cpu_share": statistics.median(shares),
    }


PARTS = {"kernels": kernels, "decode": decode, "prefill": prefill, "serving": serving}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder for the figures")
    args = parser.parse_args()
    if DEVICE == "cpu" and not args.tiny:
        parser.error("torch finds no GPU here; --tiny runs small shapes on the CPU")
    report = Report(args.part, args.tiny)
    with torch.inference_mode():
        measure_limits(report)
        PARTS[args.part](report)
    report.write(args.out)
    failed = launching.failed_kernels()
    if failed:
        print(f"kernels that failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
