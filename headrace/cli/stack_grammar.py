"""Grammar of `headrace audit stack`.

Owns its flags; what it does is in `cli.stack`. Imports nothing heavy, like `cli.entry`, which calls it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

Finish = Callable[[argparse.ArgumentParser], None]
_HELP = "what tokens cost, what is idle or slow, and what would cost less"


def add_stack(actions: argparse._SubParsersAction[argparse.ArgumentParser], finish: Finish) -> None:
    """Add the audit of a stack. `finish` adds what every command has."""
    parser = actions.add_parser("stack", help=_HELP)
    parser.add_argument("--since", metavar="DAY", help="first day, UTC, such as 2027-01-01 (default: 30 days)")
    parser.add_argument("--until", metavar="DAY", help="last day (default: today)")
    parser.add_argument("--tenant", metavar="ID", help="requests of this tenant only")
    parser.add_argument("--model", dest="only", metavar="NAME", help="requests to this model only")
    parser.add_argument(
        "--against",
        action="append",
        metavar="PRICE",
        help="price to compare machines with, may be given several times: INPUT/OUTPUT or INPUT/OUTPUT/CACHED in "
        "dollars per million tokens, book:PROVIDER/MODEL, or a model of gateway.prices",
    )
    parser.add_argument(
        "--fits",
        nargs=2,
        metavar="STEPS",
        help="step times of this configuration, then of another one, each from `headrace bench steps --out`",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with figures, too")
    parser.add_argument("--json", action="store_true", help="write JSON")
    finish(parser)
