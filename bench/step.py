"""Measure whole native steps of a model: time, bytes per second and their share of the read limit, by kind of region.

    python bench/step.py --model smollm2-135m --rows 1 4 8 32 --prefill 512 --context 128

Decode: every row continues its own sequence of `--context` tokens. Prefill: one prompt in one step. The read limit is
measured in the same run as two prefetched streams per thread over `--limit-mib`. Times are minima over `--tries`
windows: the machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.executor.native import NativeExecutor
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.model.store import Store
from headrace.ops.native import library, linear

BLOCK_SIZE = 32
GREEDY = SamplingParams(temperature=0.0)


def read_limit(threads: int, mib: int, tries: int) -> float:
    """Measure bytes per second of reading memory."""
    with library.Pool(threads) as pool:
        data = linear.aligned_bytes(mib << 20)
        data[:] = 1
        best = 0.0
        for _ in range(tries):
            started = time.perf_counter()
            library.library().hr_read_memory(pool.handle, data.ctypes.data, mib << 20, 1)
            best = max(best, (mib << 20) / (time.perf_counter() - started))
    return best


def decode_step(step_id: int, rows: int, context: int) -> Step:
    """Return a step in which every row computes one token after `context` others."""
    per_row = -(-(context + 1) // BLOCK_SIZE)
    return Step(
        step_id,
        tuple(
            Row(
                seq_id=SeqId(r),
                start=context,
                tokens=(100 + r,),
                blocks=tuple(range(r * per_row, (r + 1) * per_row)),
                sampling=GREEDY,
                num_output=1,
            )
            for r in range(rows)
        ),
    )


def prefill_step(step_id: int, tokens: int) -> Step:
    """Return a step that computes one whole prompt."""
    blocks = tuple(range(-(-tokens // BLOCK_SIZE)))
    prompt = tuple(100 + i * 37 % 9000 for i in range(tokens))
    return Step(step_id, (Row(seq_id=SeqId(0), start=0, tokens=prompt, blocks=blocks, sampling=GREEDY),))


def measure(executor: NativeExecutor, step: Step, tries: int) -> tuple[float, float, dict[str, float]]:
    """Return the least seconds of a step, the least inside native code, and the milliseconds by region of one run."""
    executor.launch(step).result()
    repeats = 1 if step.num_tokens > 64 else 10
    best = native = 1e9
    for _ in range(tries):
        started = time.perf_counter()
        for _ in range(repeats):
            executor.launch(step).result()
        best = min(best, (time.perf_counter() - started) / repeats)
    spans: dict[str, int] = {}
    for _ in range(tries):
        executor.times(on=True)
        executor.launch(step).result()
        now = executor.times(on=False)
        if sum(now.values()) < native * 1e9:
            native, spans = sum(now.values()) / 1e9, now
    return best, native, {kind: round(ns / 1e6, 3) for kind, ns in spans.items() if ns}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="known name or path")
    parser.add_argument("--quantization", default="auto", choices=["auto", "bf16", "int8", "int4"])
    parser.add_argument("--kv-dtype", default="auto", choices=["auto", "bf16", "int8"])
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 8, 32])
    parser.add_argument("--prefill", type=int, nargs="*", default=[512])
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--limit-mib", type=int, default=256)
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/headrace").expanduser())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    path = Path(args.model)
    if not path.exists():
        path = Store(args.cache_dir).pull(args.model).path
    checkpoint = open_checkpoint(path)
    started = time.perf_counter()
    executor = NativeExecutor(
        build_program(checkpoint.config),
        checkpoint,
        num_blocks=max(args.rows, default=1) * (args.context // BLOCK_SIZE + 1) + max(args.prefill, default=1),
        block_size=BLOCK_SIZE,
        threads=args.threads,
        max_step_tokens=max([512, *args.prefill]),
        cache_dir=args.cache_dir,
        quantization=args.quantization,
        kv_dtype=args.kv_dtype,
    )
    loaded_s = time.perf_counter() - started
    executor.settle()
    limit = read_limit(args.threads, args.limit_mib, args.tries)
    results: list[dict[str, object]] = []
    steps = [(f"decode {n}", decode_step(i, n, args.context)) for i, n in enumerate(args.rows)]
    steps += [(f"prefill {n}", prefill_step(0, n)) for n in args.prefill]
    for name, step in steps:
        best, native, spans = measure(executor, step, args.tries)
        rate = executor.weight_bytes / best
        results.append(
            {
                "step": name,
                "ms": round(best * 1e3, 3),
                "native_ms": round(native * 1e3, 3),
                "tokens_per_s": round(step.num_tokens / best),
                "weight_gb_per_s": round(rate / 1e9, 1),
                "of_read_limit": round(rate / limit, 2),
                "regions_ms": spans,
            }
        )
    executor.shutdown()
    if args.json:
        facts = {"read_gb_per_s": limit / 1e9, "loaded_s": loaded_s, "isa": library.active_isa(), "steps": results}
        print(json.dumps(facts))
        return
    print(
        f"{library.active_isa()}, {args.threads} threads, read limit {limit / 1e9:.1f} GB/s, loaded in {loaded_s:.2f} s"
    )
    for result in results:
        print(
            f"{result['step']:>12}: {result['ms']:>8} ms  {result['tokens_per_s']:>6} tok/s  "
            f"{result['weight_gb_per_s']:>5} GB/s ({result['of_read_limit']:.0%})  {result['regions_ms']}"
        )


if __name__ == "__main__":
    main()
