"""The command line: serve, pull, models, chat, generate, doctor, plan."""

from headrace.cli.entry import main

__all__ = ["main"]
