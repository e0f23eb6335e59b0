"""Measure packed linear layers alone: time, bytes and operations per second, and their share of the limits.

    python bench/linear.py --n 8192 --k 2048 --formats i8 i4g32a --rows 1 8 32 512

Limits are measured in the same run: memory read as two prefetched streams per thread; int8 products in registers. The
weight is copied often enough to exceed the caches (`--footprint-mib`), as a real model does. Times are the minimum over
`--tries`: the machine may be shared; if it is busy, --threads 1 --clock thread counts CPU time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from headrace.ops.native import library, linear

FORMATS: dict[str, tuple[linear.WeightFormat, int, bool]] = {
    "f32": (linear.WeightFormat.F32, 0, False),
    "bf16": (linear.WeightFormat.BF16, 0, False),
    "i8": (linear.WeightFormat.I8, 0, False),
    **{f"i8g{g}{'a' * a}": (linear.WeightFormat.I8G, g, bool(a)) for g in (32, 64, 128) for a in (0, 1)},
    **{f"i8r{g}": (linear.WeightFormat.I8R, g, False) for g in (64, 128, 192, 256)},
    **{f"i4g{g}{'a' * a}": (linear.WeightFormat.I4G, g, bool(a)) for g in (32, 64, 128) for a in (0, 1)},
}


CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time}


class Stopwatch:
    """Least seconds of several runs, by the chosen clock."""

    def __init__(self, clock: str, tries: int) -> None:
        self._now = CLOCKS[clock]
        self._tries = tries

    def shortest(self, run: Callable[[], object]) -> float:
        """Return the least seconds `run` takes."""
        times = []
        for _ in range(self._tries):
            start = self._now()
            run()
            times.append(self._now() - start)
        return min(times)


def read_limit(pool: library.Pool, mib: int, watch: Stopwatch) -> float:
    """Measure bytes per second of reading `mib` MiB."""
    data = linear.aligned_bytes(mib << 20)
    data[:] = 1
    read = library.library().hr_read_memory
    return (mib << 20) / watch.shortest(lambda: read(pool.handle, data.ctypes.data, mib << 20, 1))


def int8_limit(pool: library.Pool, watch: Stopwatch) -> float:
    """Measure int8 operations (2 per multiply-add) per second in registers."""
    spin = library.library().hr_spin_int8
    done = spin(pool.handle, 1 << 20)
    return float(2 * done / watch.shortest(lambda: spin(pool.handle, 1 << 20)))


def measure(
    pool: library.Pool, args: argparse.Namespace, watch: Stopwatch, name: str, read_bps: float, int8_ops: float
) -> list[dict[str, object]]:
    """Measure one format at every row count."""
    kind, group, asymmetric = FORMATS[name]
    shape = linear.WeightShape(format=kind, n=args.n, k=args.k, group=group, asymmetric=asymmetric)
    rng = np.random.default_rng(0)
    first = linear.PackedMatrix.from_float(pool, shape, rng.standard_normal((args.n, args.k), np.float32))
    copies = max(1, (args.footprint_mib << 20) // shape.packed_bytes)
    weights = [first] + [linear.PackedMatrix(shape, _copy(first.data)) for _ in range(copies - 1)]
    results: list[dict[str, object]] = []
    for rows in args.rows:
        x = rng.standard_normal((rows, args.k), np.float32)
        out = np.zeros((rows, args.n), np.float32)

        def run(x: np.ndarray = x, out: np.ndarray = out) -> None:
            for weight in weights:
                linear.linear(pool, weight, x, out=out)

        run()
        seconds = watch.shortest(run) / len(weights)
        bps, ops = shape.packed_bytes / seconds, 2 * rows * args.n * args.k / seconds
        results.append(
            {
                "format": name,
                "rows": rows,
                "us": round(seconds * 1e6, 1),
                "gbps": round(bps / 1e9, 2),
                "read_share": round(bps / read_bps, 3),
                "gops": round(ops / 1e9, 1),
                "int8_share": round(ops / int8_ops, 3),
            }
        )
        print(
            "{format:8} rows {rows:4}  {us:10.1f} us  {gbps:7.2f} GB/s ({read_share:4.0%})  "
            "{gops:8.1f} GOP/s ({int8_share:4.0%})".format(**results[-1])
        )
    return results


def _copy(data: linear.Bytes) -> linear.Bytes:
    out = linear.aligned_bytes(data.nbytes)
    out[:] = data
    return out


def main() -> None:
    """Print one line per format and row count, and JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--k", type=int, default=2048)
    parser.add_argument(
        "--formats", nargs="+", choices=sorted(FORMATS), default=["bf16", "i8", "i8g32", "i4g32", "i4g32a", "i4g64a"]
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 8, 16, 32, 128, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto", help="generic, avx2, avxvnni, avx512, avx512bf16, amx, neon")
    parser.add_argument("--footprint-mib", type=int, default=256)
    parser.add_argument("--tries", type=int, default=7)
    parser.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="thread: CPU time of the caller, for one thread on a busy machine",
    )
    parser.add_argument("--json", help="write the results there")
    args = parser.parse_args()
    if args.clock == "thread" and args.threads > 1:
        parser.error("--clock thread measures one thread; add --threads 1")
    library.set_isa(args.isa)
    watch = Stopwatch(args.clock, args.tries)
    with library.Pool(args.threads) as pool:
        pool.pin_caller()
        read_bps, int8_ops = read_limit(pool, args.footprint_mib, watch), int8_limit(pool, watch)
        print(
            f"{library.active_isa()}, {args.threads} threads, [{args.n}, {args.k}]: "
            f"reads {read_bps / 1e9:.1f} GB/s, int8 {int8_ops / 1e9:.0f} GOP/s"
        )
        results = [line for name in args.formats for line in measure(pool, args, watch, name, read_bps, int8_ops)]
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"isa": library.active_isa(), "read_bps": read_bps, "int8_ops": int8_ops, "results": results}, file
            )


if __name__ == "__main__":
    main()
