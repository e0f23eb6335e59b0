"""The command line: serving and talking, accounts and the ledger, measuring and explaining."""

from headrace.cli.entry import main

__all__ = ["main"]
