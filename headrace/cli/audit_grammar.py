"""Grammar of `headrace audit`.

Owns its flags; what the actions do is in `cli.audit_log` and `cli.stack`. Imports nothing heavy, like `cli.entry`,
which calls it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from headrace.cli.stack_grammar import add_stack

Finish = Callable[[argparse.ArgumentParser], None]
_DECISIONS = ("allowed", "refused", "failed")
_KINDS = ("call", "change", "retention", "hold", "release", "lost", "alarm")


def add_audit(parser: argparse.ArgumentParser, finish: Finish) -> None:
    """Add the audit of the stack and the commands on the audit log. `finish` adds what every command has."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_stack(actions, finish)
    verify = actions.add_parser("verify", help="check every row of the log; exit code 1 names the first that is wrong")
    verify.add_argument(
        "--anchors", metavar="FILE", help="ends of the log that `headrace audit anchor` has written, kept elsewhere"
    )
    anchor = actions.add_parser("anchor", help="write the present end of the log, to be kept elsewhere")
    anchor.add_argument("file", nargs="?", metavar="FILE", help="add it to this file (default: standard output)")

    show = actions.add_parser("show", help="show the newest rows")
    show.add_argument("--rows", type=int, default=20, help="so many (default: 20)")
    export = actions.add_parser("export", help="write rows as JSON lines")
    export.add_argument("file", metavar="FILE", help="where to; - is standard output")
    for below in (show, export):
        _add_filters(below)
        below.add_argument("--content", action="store_true", help="open the content, with audit.key")

    hold = actions.add_parser("hold", help="keep the rows of a tenant or a request from deletion")
    hold.add_argument("--tenant", default="", metavar="ID", help="whose rows")
    hold.add_argument("--request", default="", metavar="ID", help="which request's rows: its x-request-id")
    hold.add_argument("--note", default="", help="why")
    holds = actions.add_parser("holds", help="list holds")
    release = actions.add_parser("release", help="end a hold")
    release.add_argument("hold", metavar="HOLD", help="id of the hold")
    prune = actions.add_parser("prune", help="delete rows past audit.retention_days now; servers do it every hour")

    key = actions.add_parser("key", help="keys that the log is sealed and content is encrypted with")
    keys = key.add_subparsers(dest="key_action", required=True, metavar="ACTION")
    new = keys.add_parser("new", help="make a key")
    new.add_argument("file", nargs="?", metavar="FILE", help="write it there, readable by its owner only")

    for below in (verify, anchor, show, export, hold, holds, release, prune):
        below.add_argument("--json", action="store_true", help="write JSON")
        finish(below)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", metavar="DAY", help="first day, UTC, such as 2027-01-01")
    parser.add_argument("--until", metavar="DAY", help="last day")
    parser.add_argument("--tenant", default="", metavar="ID", help="of this tenant only")
    parser.add_argument("--by-key", default="", metavar="KEY", help="of this key only, by its public part")
    parser.add_argument("--request", default="", metavar="ID", help="of this request only, by its x-request-id")
    parser.add_argument("--model", dest="only", default="", metavar="NAME", help="that asked this model only")
    parser.add_argument("--kind", default="", choices=_KINDS, help="of this kind only")
    parser.add_argument("--decision", default="", choices=_DECISIONS, help="with this decision only")
    parser.add_argument("--reason", default="", help="with this reason only: auth, limit, budget, overload, …")
