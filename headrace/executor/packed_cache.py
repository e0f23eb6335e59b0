"""Packed weights on disk: one file per model, format and policy, mapped instead of loaded.

Owns the file's layout and its life: written to a temporary name, renamed when complete, opened read-only.
Invariant: a file is used only if its magic, version, length and key are what this build would write for this model;
else it is made again. Nothing is ever read from a file that was not finished.

    | magic 8 B | header length u64 | header: msgpack of Header | padding to 4096 | tensors, each at a multiple of 64 |

The key names what the bytes depend on: the layout version, the policy, and a fingerprint of the checkpoint (every
tensor's name, format and shape, and samples of its bytes), so a moved file still fits and a changed one does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program

_MAGIC = b"HRPACK\r\n"
_VERSION = 1  # counts changes of this file and of csrc/layout.h
_PAGE = 4096
_SAMPLE = 512  # bytes looked at in one place
_SAMPLES = 8  # places per tensor

Bytes = NDArray[np.uint8]


class Place(msgspec.Struct, frozen=True):
    """Where one tensor is: from the start of the file."""

    offset: int
    num_bytes: int


class Header(msgspec.Struct, frozen=True):
    """What a packed file says of itself."""

    version: int
    key: str
    num_bytes: int
    places: dict[str, Place]


def fingerprint(program: Program, checkpoint: Checkpoint, policy: str) -> str:
    """Return the key of a model packed under a policy. Cost: a few kilobytes of every tensor are read."""
    digest = hashlib.sha256(f"{_VERSION}|{policy}".encode())
    for spec in program.weights:
        digest.update(f"|{spec.name}{spec.shape}{spec.offset}".encode())
        for part in spec.parts:
            tensor = checkpoint.tensor(part)
            digest.update(f"|{part}{tensor.format.label}{tensor.shape}".encode())
            rows = tensor.data
            for row in np.unique(np.linspace(0, len(rows) - 1, _SAMPLES).astype(int)):
                digest.update(rows[row, :_SAMPLE].tobytes())
                digest.update(rows[row, -_SAMPLE:].tobytes())
    return digest.hexdigest()


def lay_out(key: str, sizes: Mapping[str, int]) -> Header:
    """Return the header of a file that holds tensors of these sizes in this order."""
    room = 2 * _PAGE + len(msgspec.msgpack.encode(dict.fromkeys(sizes, (1 << 60, 1 << 60))))
    at = -(-room // _PAGE) * _PAGE
    places: dict[str, Place] = {}
    for name, num_bytes in sizes.items():
        places[name] = Place(at, num_bytes)
        at += -(-num_bytes // 64) * 64
    return Header(_VERSION, key, max(at, _PAGE), places)


class PackedFile:
    """One mapping with all packed tensors: of a cache file, or of anonymous memory where there is no cache."""

    def __init__(self, header: Header, memory: mmap.mmap) -> None:
        self.header = header
        self._memory = memory
        self._bytes: Bytes = np.frombuffer(memory, np.uint8)

    @property
    def num_bytes(self) -> int:
        """Bytes of the mapping."""
        return self.header.num_bytes

    def tensor(self, name: str) -> Bytes:
        """Return a view of one tensor's bytes."""
        place = self.header.places[name]
        return self._bytes[place.offset : place.offset + place.num_bytes]


def try_open(path: Path, key: str) -> PackedFile | None:
    """Map a finished file of this key; None if there is none."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
            header_bytes = int.from_bytes(start[8:16], "little")
            size = os.fstat(file.fileno()).st_size
            if start[:8] != _MAGIC or header_bytes > size:
                return None
            header = msgspec.msgpack.decode(file.read(header_bytes), type=Header)
            if (header.version, header.key, header.num_bytes) != (_VERSION, key, size):
                return None
            return PackedFile(header, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
    except (OSError, msgspec.DecodeError):
        return None


def create(path: Path | None, header: Header, write: Callable[[PackedFile], None]) -> PackedFile:
    """Make the tensors with `write` and return them mapped; in memory alone where `path` is None or cannot be written.

    Raises what `write` raises; nothing is left behind then.
    """
    if path is not None:
        with contextlib.suppress(OSError):
            return _create_file(path, header, write)
    packed = PackedFile(header, mmap.mmap(-1, header.num_bytes))
    write(packed)
    return packed


def _create_file(path: Path, header: Header, write: Callable[[PackedFile], None]) -> PackedFile:
    """Write beside the final name and rename when all is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    encoded = msgspec.msgpack.encode(header)
    try:
        with partial.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, header.num_bytes)  # a full disk is an error now, not a crash later
            memory = mmap.mmap(file.fileno(), header.num_bytes)
        packed = PackedFile(header, memory)
        write(packed)
        memory[8:16] = len(encoded).to_bytes(8, "little")
        memory[16 : 16 + len(encoded)] = encoded
        memory[:8] = _MAGIC
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return packed
