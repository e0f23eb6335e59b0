"""Tables on standard output, all of one look: as wide as the terminal, or as wide as they need to be in a pipe.

Owns nothing. Columns are told apart by space alone, and a line in a pipe ends where its text ends, so that what is
written can be read by people and by `awk` alike.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 240


def print_table(table: Table) -> None:
    """Write one table."""
    table.box, table.pad_edge = None, False
    title, caption, table.title, table.caption = table.title, table.caption, None, None  # they would wrap at its width
    if title is not None:
        print(title)
    _print(table)
    if caption is not None:
        print(caption)


def _print(table: Table) -> None:
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=_PIPE_COLUMNS)
    with console.capture() as written:
        console.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in written.get().splitlines()))
