"""`headrace plan`: how an engine would be built here, and with `--explain` why."""

from __future__ import annotations

import argparse

from rich.table import Table

from headrace.app.hardware import detect
from headrace.app.loading import open_model
from headrace.cli.configured import settings_from
from headrace.cli.progress import pull_with_bar
from headrace.cli.tables import print_table


def run(args: argparse.Namespace) -> int:
    """Print one plan per model."""
    settings = settings_from(args)
    hardware = detect()
    for name in settings.models:
        opened = open_model(pull_with_bar(settings, name), settings, hardware)
        opened.close()
        table = Table(box=None)
        for column in ("setting", "value", "because")[: 3 if args.explain else 2]:
            table.add_column(column)
        for row in opened.plan.rows():
            table.add_row(*row[: len(table.columns)])
        print_table(table)
        taken = opened.plan.weight_bytes.value + opened.plan.kv_bytes.value
        hardware = hardware.without(taken)
    return 0
