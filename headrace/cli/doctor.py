"""`headrace doctor`: what this machine has, as this process may use it."""

from __future__ import annotations

import argparse
import sys

import msgspec
from rich.table import Table

from headrace.app.backends import use_isa
from headrace.app.hardware import detect
from headrace.cli.configured import settings_from
from headrace.cli.tables import print_table
from headrace.executor.native import problem as native_problem
from headrace.ops.native.limits import MachineLimits, measure_limits
from headrace.ops.probe import read_bandwidth

_GIB = 1 << 30


def run(args: argparse.Namespace) -> int:
    """Print the report; measures memory and products for about a second."""
    settings = settings_from(args)
    machine = detect()
    native = native_problem()
    isa = use_isa().value if native is None else None
    limits = measure_limits(machine.cores) if native is None else None
    bandwidth = read_bandwidth(machine.cores) if limits is None else limits.read_bytes_per_s
    if args.json:
        products = {
            "int8_ops_per_s": None if limits is None else round(limits.int8_ops_per_s),
            "bf16_ops_per_s": None if limits is None else round(limits.bf16_ops_per_s),
        }
        report = {
            **msgspec.to_builtins(machine),
            "read_bytes_per_s": round(bandwidth),
            **products,
            "native_problem": native,
            "native_isa": isa,
        }
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return 0
    limit = f"{machine.memory_limit / _GIB:.1f} GiB" if machine.memory_limit is not None else "none"
    table = Table(show_header=False, box=None)
    for name, value in (
        ("cpu", f"{machine.cpu} ({machine.architecture})"),
        ("cores", str(machine.cores)),
        ("instruction sets", ", ".join(machine.isa) or "none of the fast ones"),
        ("memory", f"{machine.memory_available / _GIB:.1f} GiB available of {machine.memory_total / _GIB:.1f} GiB"),
        ("memory limit", limit),
        ("memory bandwidth", f"{bandwidth / 1e9:.1f} GB/s read, measured now with {machine.cores} threads"),
        ("products", _products(limits)),
        ("native backend", f"works, with {isa} instructions" if native is None else f"does not work: {native}"),
        ("extras", ", ".join(machine.extras) or "none"),
        ("python", machine.python),
        ("models in", settings.cache_dir),
    ):
        table.add_row(f"[bold]{name}[/]", value)
    print_table(table)
    return 0


def _products(limits: MachineLimits | None) -> str:
    """Say how fast the cores multiply."""
    if limits is None:
        return "not measured: they need the native backend"
    return f"int8 {limits.int8_ops_per_s / 1e12:.2f} TOP/s, bf16 {limits.bf16_ops_per_s / 1e12:.2f} TOP/s, measured now"
