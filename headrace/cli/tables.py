"""Tables on standard output: as wide as the terminal, or as wide as they need to be in a pipe."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 240


def print_table(table: Table) -> None:
    """Write one table."""
    Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(table)
