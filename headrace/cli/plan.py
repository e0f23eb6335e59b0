"""`headrace plan`: how an engine would be built here, and with `--explain` why, and what packing costs the weights."""

from __future__ import annotations

import argparse
from contextlib import closing

from rich.table import Table

from headrace.app.backends import use_isa
from headrace.app.hardware import detect
from headrace.app.loading import OpenedModel, open_model
from headrace.cli.configured import settings_from
from headrace.cli.progress import pull_with_bar
from headrace.cli.tables import print_table
from headrace.executor.packing_error import packing_errors, summarize


def run(args: argparse.Namespace) -> int:
    """Print one plan per model."""
    settings = settings_from(args)
    hardware = detect()
    for name in settings.models:
        opened = open_model(pull_with_bar(settings, name), settings, hardware)
        with closing(opened):
            packed = _packed_table(opened) if args.explain and opened.plan.backend.value == "native" else None
        table = Table(box=None)
        for column in ("setting", "value", "because")[: 3 if args.explain else 2]:
            table.add_column(column)
        for row in opened.plan.rows():
            table.add_row(*row[: len(table.columns)])
        if opened.plan.backend.value == "native":
            isa = use_isa()
            table.add_row(*("instructions", isa.value, isa.reason)[: len(table.columns)])
        print_table(table)
        if packed is not None:
            print_table(packed)
        taken = opened.plan.weight_bytes.value + opened.plan.kv_bytes.value
        hardware = hardware.without(taken)
    return 0


def _packed_table(opened: OpenedModel) -> Table:
    """Return how far the packed weights will be from the file's, by how they are stored."""
    table = Table(box=None)
    for column in ("weights stored as", "packed as", "matrices", "relative RMS error", "worst", "of"):
        table.add_column(column)
    for line in summarize(packing_errors(opened.program, opened.checkpoint, opened.plan.quantization.value)):
        figures = [_share(error) for error in (line.relative_rms, line.worst.relative_rms)]
        named = line.worst.weight if line.worst.relative_rms else ""
        table.add_row(line.stored, line.packed, f"{line.num_matrices}", *figures, named)
    return table


def _share(error: float) -> str:
    return f"{error:.3%}" if error else "none"
