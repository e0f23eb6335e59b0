"""What a run of bench/gpu.py found: rows printed as they come, each in the file before the next is begun.

Owns bench-results/gpu-PART.json: a list of runs, to which a run is appended. Earlier runs are never lost, and of one
that dies, all rows up to there are kept, and what it died at is named. A row that hangs on a GPU ends the run.
Called by the parts of bench/gpu.py.
"""

from __future__ import annotations

import faulthandler
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
import triton

import headrace
from headrace.ops.cuda import launching

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KIND = torch.bfloat16
_RING_BYTES = 256 << 20  # several times the L2 cache of an H200
_REPLAYS = 10


class DeviceLost(Exception):
    """Nothing more can be measured in this process."""


class Report:
    """Rows of one part."""

    def __init__(
        self, part: str, *, is_tiny: bool, is_timed: bool, launches_early: bool, minutes: float, folder: Path
    ) -> None:
        self.is_tiny = is_tiny
        self.is_timed = is_timed
        self.launches_early = launches_early
        self.rows: list[dict[str, object]] = []
        self.limits: dict[str, float] = {}
        self._doing: list[str] = []
        self._part = part
        self._ends = time.monotonic() + 60 * minutes
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"gpu-{part}.json"
        self._earlier: list[object] = json.loads(self.path.read_text())["runs"] if self.path.exists() else []

    @property
    def has_failed(self) -> bool:
        return any("failed" in row or row.get("right") is False for row in self.rows)

    def add(self, name: str, **figures: object) -> None:
        """Keep a row and print it."""
        self.rows.append({"what": name, **figures})
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        print(f"{name:<58} {shown}", flush=True)
        self.write()

    @contextmanager
    def row(self, name: str, *, hangs_after: float = 240.0) -> Iterator[None]:
        """Measure something: what fails is a row that says so, and the next one goes on, if the device still works.

        Random numbers are the same whenever a row is measured.
        hangs_after  seconds, on a GPU, four times as many where only checks are run, as under a sanitizer: then it
        says where it is, and ends the process"""
        torch.manual_seed(0)
        self._doing.append(name)
        self.write()
        if DEVICE == "cuda":
            faulthandler.dump_traceback_later(hangs_after * (1 if self.is_timed else 4), exit=True)
        try:
            yield
        except Exception as error:
            self.add(name, failed=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
            if isinstance(error, DeviceLost) or not works():
                raise DeviceLost(str(error)) from error
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._doing.pop()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()

    def has_time(self, name: str, *, minutes: float = 0.3) -> bool:
        """Say whether something that takes about so long may still be begun; if not, that is a row."""
        if time.monotonic() + 60 * minutes <= self._ends:
            return True
        self.add(name, skipped="no time left; run this part with more --minutes")
        return float(torch.ones(8, device=DEVICE).sum()) == 8.0

    def seconds_left(self) -> float:
        """Return the time that this part still has, at least a second."""
        return max(self._ends - time.monotonic(), 1.0)

    def write(self) -> None:
        """Write everything to the file, which is whole at any time."""
        run = {
            "date": self._began,
            "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu, interpreted: times mean nothing",
            "headrace": headrace.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
            "tiny": self.is_tiny,
            "early_launch": self.launches_early,
            "limits": self.limits,
            "failed_kernels": launching.failed_kernels(),
            "rows": self.rows,
        } | ({"died_at": self._doing[-1]} if self._doing else {})  # unless it is written once more
        whole = json.dumps({"part": self._part, "runs": [*self._earlier, run]}, indent=1) + "\n"
        beside = self.path.with_suffix(".part")
        beside.write_text(whole)
        os.replace(beside, self.path)

    def measure_limits(self) -> None:
        """Measure what a copy and a large product reach here; every share is of these."""
        size = 1 << (20 if self.is_tiny else 31)
        source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        n = 128 if self.is_tiny else 8192
        a, b = random(n, n).to(KIND), random(n, n).to(KIND)
        out = torch.empty((n, n), dtype=KIND, device=DEVICE)
        self.limits = {
            "bytes_per_s": 2 * size / seconds(self, [lambda: target.copy_(source)]),
            "flops": 2 * n**3 / seconds(self, [lambda: torch.matmul(a, b, out=out)]),
        }
        copied, multiplied = (self.limits[name] / 1e12 for name in ("bytes_per_s", "flops"))
        print(f"copy {copied:.2f} TB/s, bf16 product {multiplied:.0f} TFLOP/s", flush=True)
        self.write()

    def share(self, took: float, num_bytes: float, flops: float = 0.0) -> dict[str, float]:
        """Return the shares of the limits that a time stands for."""
        found = {"of_bandwidth": num_bytes / took / self.limits["bytes_per_s"]}
        return found | ({"of_flops": flops / took / self.limits["flops"]} if flops else {})


def seconds(report: Report, calls: list[Callable[[], object]]) -> float:
    """Return the median seconds of one call, going round the calls so that none finds its data in the cache.

    On a GPU they are recorded as one graph, and replays of it timed: what the host does is left out.
    """
    if DEVICE != "cuda" or not report.is_timed:
        started = time.perf_counter()
        calls[0]()
        return time.perf_counter() - started
    count = max(len(calls), 8)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for call in (*calls[:2], calls[0]):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(_REPLAYS):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3 / count)
    return statistics.median(times)


def works() -> bool:
    """Say whether the device still computes: a bad address ends all, a product that a library refuses nothing."""
    try:
        return float(torch.ones(8, device=DEVICE).sum()) == 8.0
    except RuntimeError:
        return False


def ring(num_bytes: int) -> int:
    """Return how many copies of a buffer leave the cache."""
    return 1 if DEVICE != "cuda" else max(-(-_RING_BYTES // max(num_bytes, 1)), 2)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative error; not a number where an output was not written."""
    return float((out.double() - expected).norm() / expected.norm())
