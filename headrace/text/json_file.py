"""Reads the small JSON files beside a checkpoint."""

from __future__ import annotations

from pathlib import Path

import msgspec

from headrace.core.errors import ModelFileBroken


def read_object(path: Path) -> dict[str, object]:
    """Return the object in `path`, empty if there is no such file. Raises ModelFileBroken if it is no JSON object."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except msgspec.DecodeError as error:
        raise ModelFileBroken(f"'{path}' is no JSON object: {error}") from error
