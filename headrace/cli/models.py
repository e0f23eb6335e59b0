"""`headrace models`: which names are known, and which models are here."""

from __future__ import annotations

import argparse
import sys

import msgspec
from rich.table import Table

from headrace.app.pulling import ModelRow, model_rows
from headrace.cli.configured import settings_from
from headrace.cli.tables import print_table


def run(args: argparse.Namespace) -> int:
    """Print one row per model, known ones first."""
    rows = model_rows(settings_from(args))
    if args.json:
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
        return 0
    table = Table(box=None)
    for column in ("name", "here", "MB", "license", "source"):
        table.add_column(column, no_wrap=column == "name", justify="right" if column == "MB" else "left")
    for row in rows:
        table.add_row(row.name, "yes" if row.path else "no", _megabytes(row), row.license or "not stated", row.source)
    print_table(table)
    return 0


def _megabytes(row: ModelRow) -> str:
    return f"{row.size_bytes / 1e6:,.0f}" if row.size_bytes is not None else "?"
