"""Plain data as block YAML, which people can read and Prometheus does.

Owns nothing; pure. Strings are written as JSON strings, which are YAML's too, so no quoting has to be guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

Data = str | int | float | bool | None | Sequence["Data"] | Mapping[str, "Data"]


def to_yaml(data: Data, comment: str = "") -> str:
    """Spell a mapping or a list, under a comment."""
    head = [f"# {line}" for line in comment.splitlines()]
    return "\n".join([*head, *_lines(data)]) + "\n"


def _lines(data: Data) -> Iterator[str]:
    """Yield the lines of a value, without indentation."""
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from _entry(f"{key}:", value)
    elif isinstance(data, Sequence) and not isinstance(data, str) and data:
        for value in data:
            first, *rest = _lines(value)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield json.dumps(data, ensure_ascii=False)


def _entry(key: str, value: Data) -> Iterator[str]:
    if isinstance(value, (Mapping, Sequence)) and not isinstance(value, str) and value:
        yield key
        yield from (f"  {line}" for line in _lines(value))
    else:
        yield f"{key} {json.dumps(value, ensure_ascii=False)}"
