"""`LocalModel`: a model that is on this machine, and the record beside its files that says so.

Owns the record's format. Invariant: the record is written last, so a directory with a record is a whole model.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

RECORD_NAME = "headrace.json"


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be opened.

    path        GGUF file or directory, for `model.open_checkpoint`
    name        what it is called on the wire
    license     terms, None where the source did not tell
    source      what it was pulled from, in words
    size_bytes  of all its files
    """

    path: Path
    name: str
    license: str | None = None
    license_url: str | None = None
    source: str = ""
    size_bytes: int = 0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside the files. `main` is the file to open, empty for the directory itself."""

    name: str
    source: str
    main: str
    files: dict[str, int]  # name → size in bytes
    sha256: dict[str, str]
    license: str | None = None
    license_url: str | None = None


def write_record(directory: Path, record: Record) -> None:
    """Write the record in one step: it is there whole or not at all."""
    draft = directory / (RECORD_NAME + ".part")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    os.replace(draft, directory / RECORD_NAME)


def read_record(directory: Path) -> Record | None:
    """Return the record of a directory, None where there is none or its files are gone or cut short."""
    try:
        record = msgspec.json.decode((directory / RECORD_NAME).read_bytes(), type=Record)
        whole = all((directory / name).stat().st_size == size for name, size in record.files.items())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return record if whole else None


def local_model(directory: Path, record: Record) -> LocalModel:
    """Return the model that a record describes."""
    return LocalModel(
        path=directory / record.main if record.main else directory,
        name=record.name,
        license=record.license,
        license_url=record.license_url,
        source=record.source,
        size_bytes=sum(record.files.values()),
    )
