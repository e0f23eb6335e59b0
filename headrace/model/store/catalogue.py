"""The catalogue: models known by name, read from `catalogue.toml` beside this package.

Owns nothing mutable. A new name is a new table in the data file; no code changes.
Callers: `store.py`.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import msgspec

from headrace.model.store.source import ModelSource, parse_origin


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file; its header explains the fields."""

    title: str
    source: str | None = None
    parts: tuple[str, ...] = ()
    sha256: str
    size_bytes: int
    download_bytes: int
    license: str
    license_url: str


@cache
def catalogue() -> MappingProxyType[str, ModelSource]:
    """Return the known models by name, in the order of the file."""
    text = files("headrace.model").joinpath("catalogue.toml").read_text(encoding="utf-8")
    entries = msgspec.convert(tomllib.loads(text), dict[str, _Entry])
    return MappingProxyType(
        {
            name: ModelSource(
                name=name,
                key=name,
                origins=tuple(parse_origin(part) for part in (entry.parts or (entry.source or "",))),
                sha256=entry.sha256,
                size_bytes=entry.size_bytes,
                download_bytes=entry.download_bytes,
                license=entry.license,
                license_url=entry.license_url,
            )
            for name, entry in entries.items()
        }
    )
