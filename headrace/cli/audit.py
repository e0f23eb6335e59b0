"""`headrace audit`: what was served, looked into.

Owns nothing; each action has a file of its own, imported when it is asked for.
"""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Carry out one action."""
    from headrace.cli import stack

    return stack.run(args)
