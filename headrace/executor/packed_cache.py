"""Packed weights on disk: one file per model, format and policy, read as it is into memory of huge pages.

Owns the file's layout and its life: written to a temporary name, renamed when complete, read whole. Huge pages are
worth the copy: with small ones products of some rows run slower, waiting for addresses, see design note 026.
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
from concurrent.futures import ThreadPoolExecutor
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
_PIECE = 32 << 20
_READERS = 4

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
    """What a cache file holds, in memory of this process: all packed tensors, writable until `seal`."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self._memory = memoryview(_huge_memory(header.num_bytes))
        self._bytes: Bytes = np.frombuffer(self._memory, np.uint8)

    @property
    def num_bytes(self) -> int:
        """Bytes of the file, and of memory."""
        return self.header.num_bytes

    def seal(self) -> memoryview:
        """Let nobody write any more; return all bytes."""
        self._bytes.setflags(write=False)
        return self._memory.toreadonly()

    def read(self, descriptor: int) -> None:
        """Take all bytes from an open file, several pieces at a time. Raises OSError if it is shorter."""

        def read_piece(start: int) -> None:
            at, end = start, min(start + _PIECE, self.num_bytes)
            while at < end:
                done = os.preadv(descriptor, [self._memory[at:end]], at)
                if done == 0:
                    raise OSError(f"the file ends at byte {at:,} of {self.num_bytes:,}")
                at += done

        with ThreadPoolExecutor(_READERS) as readers:
            for _ in readers.map(read_piece, range(0, self.num_bytes, _PIECE)):
                pass

    def label(self) -> None:
        """Put the file's magic and header in front of the tensors."""
        encoded = msgspec.msgpack.encode(self.header)
        start = _MAGIC + len(encoded).to_bytes(8, "little") + encoded
        self._bytes[: len(start)] = np.frombuffer(start, np.uint8)

    def tensor(self, name: str) -> Bytes:
        """Return a view of one tensor's bytes."""
        place = self.header.places[name]
        return self._bytes[place.offset : place.offset + place.num_bytes]


def try_open(path: Path, key: str) -> PackedFile | None:
    """Read a finished file of this key; None if there is none."""
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
            packed = PackedFile(header)
            packed.read(file.fileno())
            packed.seal()
            return packed
    except (OSError, msgspec.DecodeError):
        return None


def create(path: Path | None, header: Header, write: Callable[[PackedFile], None]) -> PackedFile:
    """Make the tensors with `write`, keep them at `path` and return them; unkept if that is None or cannot be written.

    Raises what `write` raises; nothing is left behind then.
    """
    packed = PackedFile(header)
    write(packed)
    packed.label()
    content = packed.seal()
    if path is not None:
        with contextlib.suppress(OSError):
            _save(path, content)
    return packed


def _save(path: Path, content: memoryview) -> None:
    """Write beside the final name and rename when all is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _huge_memory(num_bytes: int) -> mmap.mmap:
    """Return zeroed memory, of huge pages where the system has them."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has small pages
    with contextlib.suppress(OSError, AttributeError, ValueError):  # not every system has them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
