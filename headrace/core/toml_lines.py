"""Where a key stands in a TOML text, since the standard library's reader does not tell.

Pure. Reads table headers and the beginnings of `key = …` lines only, of a text that is known to be valid TOML; text in
a multi-line string that looks like a key can mislead it, which costs a wrong line in a message and nothing else.
"""

from __future__ import annotations

import re

_HEADER = re.compile(r"^\s*\[\[?\s*([^\]]+?)\s*\]")
_KEY = re.compile(r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")


def line_of(text: str, key: str) -> int | None:
    """Return the number, from 1, of the line that sets `key` (dotted), or of the nearest table around it."""
    table: tuple[str, ...] = ()
    places: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            places.setdefault(table, number)
        elif found := _KEY.match(line):
            places.setdefault(table + _parts(found[1]), number)
    wanted = tuple(key.split("."))
    named = {".".join(parts): number for parts, number in places.items()}
    for length in range(len(wanted), 0, -1):
        number_found = named.get(".".join(wanted[:length]))
        if number_found is not None:
            return number_found
    return None


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(text))
