"""`headrace audit`: what was served, looked into, and the log of who asked for it.

Owns nothing; what the actions do has files of its own, imported when it is asked for.
"""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Carry out one action."""
    if args.action == "stack":
        from headrace.cli import stack

        return stack.run(args)
    from headrace.cli import audit_log

    return audit_log.run(args)
