"""Grammar of the commands that keep accounts: `headrace tenants`, `keys`, `limits`, `budgets`.

Owns their flags; what they do is in the file of each. Imports nothing heavy, like `cli.entry`, which calls it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

Finish = Callable[[argparse.ArgumentParser], None]
_SUBJECT = "tenant:ID, key:ID, tenant:* or key:* (each its own), or all"


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
        choices=("user", "monitor", "auditor", "admin"),
        default="user",
        help="ask models (default), read /metrics, read the audit log, or everything",
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


def add_limits(parser: argparse.ArgumentParser, finish: Finish) -> None:
    """Add the commands on limits."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    change = actions.add_parser("set", help="add a limit or change its amount")
    change.add_argument("subject", metavar="SUBJECT", help=_SUBJECT)
    change.add_argument("what", choices=("requests", "tokens", "parallel", "steps"), help="what is counted")
    change.add_argument("amount", type=int, metavar="AMOUNT", help="how many")
    change.add_argument("--per", choices=("minute", "hour", "day", "task"), help="of requests and tokens; steps: task")
    change.add_argument("--model", dest="only", metavar="NAME", help="of this model only")
    listing = actions.add_parser("list", help="list limits")
    remove = actions.add_parser("remove", help="remove a limit")
    remove.add_argument("limit", metavar="LIMIT", help="id of the limit")
    for below in (change, listing, remove):
        _finish(below, finish)


def add_budgets(parser: argparse.ArgumentParser, finish: Finish) -> None:
    """Add the commands on budgets."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    change = actions.add_parser("set", help="add a budget or change it")
    change.add_argument("subject", metavar="SUBJECT", help=_SUBJECT)
    change.add_argument("limit", metavar="DOLLARS", help="how much, such as 12.50")
    change.add_argument(
        "--period", default="month", help="hour, day, week, month, total, task or rolling:30d (default: month)"
    )
    change.add_argument("--timezone", default="UTC", help="where days, weeks and months begin (default: UTC)")
    change.add_argument("--model", dest="only", metavar="NAME", help="of this model only")
    change.add_argument("--warn-at", metavar="DOLLARS", help="warn callers from here on")
    change.add_argument("--soft", dest="soft_only", action="store_true", help="warn only, never refuse")
    listing = actions.add_parser("list", help="list budgets and where they stand")
    show = actions.add_parser("show", help="show every account of a budget")
    reset = actions.add_parser("reset", help="begin anew: nothing is spent")
    remove = actions.add_parser("remove", help="remove a budget")
    for below in (show, reset, remove):
        below.add_argument("budget", metavar="BUDGET", help="id of the budget")
    for below in (change, listing, show, reset, remove):
        _finish(below, finish)


def add_ledger(parser: argparse.ArgumentParser, finish: Finish) -> None:
    """Add the commands on the ledger."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    report = actions.add_parser("report", help="sum what was used, charged and paid for")
    report.add_argument("--by", choices=("tenant", "key", "model", "task", "day"), default="tenant", help="group")
    report.add_argument(
        "--allocate",
        choices=("none", "usage"),
        default="none",
        help="leave idle and other time of the pool on its own line (default), or divide it by engine time used",
    )
    export = actions.add_parser("export", help="write the ledger's rows to a .csv or .parquet file")
    export.add_argument("file", metavar="FILE", help="where to")
    export.add_argument("--format", choices=("csv", "parquet"), help="default: what the file's name ends in")
    export.add_argument(
        "--rows",
        choices=("requests", "refusals"),
        default="requests",
        help="one for each settled request (default), or the counts of calls that were turned away",
    )
    for below in (report, export):
        below.add_argument("--since", metavar="DAY", help="first day, UTC, such as 2027-01-01 (default: 30 days)")
        below.add_argument("--until", metavar="DAY", help="last day (default: today)")
    verify = actions.add_parser("verify", help="check that every nanosecond of every engine is somebody's")
    for below in (report, export, verify):
        _finish(below, finish)


def add_prices(parser: argparse.ArgumentParser) -> None:
    """Add the commands on price books."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    importing = actions.add_parser("import", help="make a price book from a public list")
    importing.add_argument("source", metavar="SOURCE", help="genai-prices (the package), or LiteLLM's map as a file")
    importing.add_argument("file", metavar="FILE", help="the price book to write, for gateway.price_book")
    show = actions.add_parser("show", help="show prices of a price book")
    show.add_argument("file", metavar="FILE", help="the price book")
    show.add_argument("model", nargs="?", metavar="PROVIDER/MODEL", help="one entry (default: all)")
    show.add_argument("--json", action="store_true", help="write JSON")


def _finish(parser: argparse.ArgumentParser, finish: Finish) -> None:
    parser.add_argument("--json", action="store_true", help="write JSON")
    finish(parser)
