"""The parser of the command line: its errors are one line that names what is wrong, what was meant and where to look.

Owns how usage errors are worded; the grammar is `cli.entry`'s. argparse would print a usage as well: that of `serve`
is eighty flags long, and for a misspelt flag it is the outermost command's, which does not contain it.
Invariant: exit code 2, one line on standard error.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

_CHOICE = re.compile(r"argument (?P<where>.+?): invalid choice: '(?P<given>.*?)' \(choose from (?P<known>.*)\)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that helps. Subcommands are made of the same class."""

    def parse_known_args(  # type: ignore[override]  # typeshed has three overloads; argparse itself calls only this form
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse; what is left over is an error of this very command, not of the program."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unknown {_kind(left[0])} '{left[0]}'{_nearest(left[0], _FLAG.findall(self.format_help()))}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """End with one line."""
        choice = _CHOICE.fullmatch(message)
        if choice is not None:
            known = re.findall(r"[\w.-]+", choice["known"])
            near = _nearest(choice["given"], known) or f"; choose from {', '.join(known)}"
            message = f"unknown {choice['where'].lower()} '{choice['given']}'{near}"
        end = "" if message.endswith("?") else ";"
        self.exit(2, f"{self.prog}: {message}{end} see `{self.prog} --help`\n")


def _kind(word: str) -> str:
    return "option" if word.startswith("-") else "argument"


def _nearest(word: str, known: Iterable[str]) -> str:
    """Name the known word that is nearest, if one is near."""
    near = difflib.get_close_matches(word.partition("=")[0], list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
