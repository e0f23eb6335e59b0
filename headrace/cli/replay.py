"""`headrace replay FILE`: run a decision log again and say whether the scheduler decides the same.

Owns how a replay is shown. Exit codes: 0 every decision is the same; 1 one is not; 2 the log cannot be followed.
"""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from headrace.sim.log_files import measured_steps, read_log
from headrace.sim.replay import Deviation, ReplayReport, replay

_SAME, _DEVIATES = 0, 1
_SHOWN = 600  # characters of a line


def run(args: argparse.Namespace) -> int:
    """Replay one log."""
    began = time.perf_counter()
    report = replay(read_log(args.log))
    elapsed_s = time.perf_counter() - began
    if args.json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _print(report, elapsed_s)
    if args.step_times is not None:
        times = measured_steps(read_log(args.log), f"measured: the steps of {args.log.name}")
        args.step_times.write_bytes(msgspec.json.format(msgspec.json.encode(times)) + b"\n")
    return _SAME if report.deviation is None else _DEVIATES


def _print(report: ReplayReport, elapsed_s: float) -> None:
    ends = ", ".join(f"{count:,} {finish}" for finish, count in sorted(report.ends.items())) or "none"
    print(
        f"{report.steps:,} steps, {report.sequences:,} sequences, {report.seconds:,.1f} s of serving replayed in "
        f"{elapsed_s:,.1f} s; {report.preemptions:,} preemptions, {report.refused:,} refusals; ended: {ends}"
    )
    if report.deviation is not None:
        _explain(report.deviation)
    elif report.is_complete:
        print("every decision is the same")
    else:
        print("every decision is the same, up to where the log ends; the engine was still running, or was killed")


def _explain(deviation: Deviation) -> None:
    step = "" if deviation.step_id is None else f", step {deviation.step_id}"
    print(f"deviates at {deviation.where}{step}, clock {deviation.now:.6f} s")
    print(f"  {deviation.what}")
    print(f"  logged    {deviation.logged[:_SHOWN]}")
    print(f"  replayed  {deviation.replayed[:_SHOWN]}")
