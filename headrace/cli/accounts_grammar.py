"""Grammar of the commands that keep accounts: `headrace tenants`, `headrace keys`.

Owns their flags; what they do is in the file of each. Imports nothing heavy, like `cli.entry`, which calls it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

Finish = Callable[[argparse.ArgumentParser], None]


def add_tenants(parser: argparse.ArgumentParser, finish: Finish) -> None:
    """Add the commands on tenants. `finish` adds what every command has."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="add a tenant: a customer or team that owns keys, limits and budgets")
    create.add_argument("tenant", metavar="ID", help="a-z 0-9 . _ -")
    create.add_argument("--name", help="for people; default: the id")
    listing = actions.add_parser("list", help="list tenants")
    disable = actions.add_parser("disable", help="stop all keys of a tenant")
    disable.add_argument("tenant", metavar="ID", help="the tenant")
    enable = actions.add_parser("enable", help="let the keys of a tenant work again")
    enable.add_argument("tenant", metavar="ID", help="the tenant")
    for below in (create, listing, disable, enable):
        _finish(below, finish)


def add_keys(parser: argparse.ArgumentParser, finish: Finish) -> None:
    """Add the commands on keys."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key and show it, this once")
    create.add_argument("tenant", metavar="TENANT", help="owner of the key")
    create.add_argument("--name", default="", help="for people")
    create.add_argument(
        "--role",
        choices=("user", "monitor", "admin"),
        default="user",
        help="ask models (default), read /metrics, or everything",
    )
    create.add_argument(
        "--model",
        action="append",
        dest="allowed",
        metavar="NAME",
        help="a model it may ask, may be given several times; default: all",
    )
    create.add_argument("--expires", metavar="TIME", help="end of its life: a time from now such as 90d, or 2027-01-31")
    listing = actions.add_parser("list", help="list keys, never their secrets")
    listing.add_argument("--tenant", help="of this tenant only")
    rotate = actions.add_parser("rotate", help="give a key a new secret and show it, this once")
    rotate.add_argument("key", metavar="KEY", help="public part of the key")
    rotate.add_argument(
        "--grace",
        default="0s",
        metavar="TIME",
        help="how long the present secret still works, such as 24h (default: 0s)",
    )
    revoke = actions.add_parser("revoke", help="end a key for good")
    revoke.add_argument("key", metavar="KEY", help="public part of the key")
    for below in (create, listing, rotate, revoke):
        _finish(below, finish)


def _finish(parser: argparse.ArgumentParser, finish: Finish) -> None:
    parser.add_argument("--json", action="store_true", help="write JSON")
    finish(parser)
