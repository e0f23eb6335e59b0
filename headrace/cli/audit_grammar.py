"""Grammar of `headrace audit`.

Owns its flags; what the actions do is in the file of each. Imports nothing heavy, like `cli.entry`, which calls it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from headrace.cli.stack_grammar import add_stack

Finish = Callable[[argparse.ArgumentParser], None]


def add_audit(parser: argparse.ArgumentParser, finish: Finish) -> None:
    """Add the audits. `finish` adds what every command has."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_stack(actions, finish)
