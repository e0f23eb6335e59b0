"""Packed weights on disk: one file per model, format and policy, whose bytes are used as they are.

Owns the file's layout and its life: written to a temporary name, renamed when complete, checked whole at every start.
Where its bytes live in this process: `packed_memory`.
Invariant: a file is used only if its magic, version, length and key are what this build would write for this model, and
its tensors what was written; else it is made again. Nothing is ever read from a file that was not finished.

    | magic 8 B | header length u64 | header: msgpack of Header | padding to 4096 | tensors, each at a multiple of 64 |

The checksum finds what a disk lost, not what somebody forged. The key names what the bytes depend on: what packing does
(`packing_probe`), the policy, and a fingerprint of the checkpoint (digest of every byte, and the program's view of it),
so a moved file still fits and a changed one does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.executor.packed_memory import PackedMemory
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program

_MAGIC = b"HRPACK\r\n"
_VERSION = 2  # counts changes of the file around the tensors; of the tensors the key tells
_PAGE = 4096
_PIECE = 32 << 20
_READERS = 4

Bytes = NDArray[np.uint8]

_log = logging.getLogger(__name__)


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
    checksum: str = ""


def fingerprint(program: Program, checkpoint: Checkpoint, policy: str) -> str:
    """Return the key of a model's weights under a policy. Cost: `Checkpoint.digest`."""
    digest = hashlib.sha256(f"{_VERSION}|{policy}|{checkpoint.digest()}".encode())
    for spec in program.weights:
        digest.update(f"|{spec.name}{spec.shape}{spec.offset}{spec.parts}".encode())
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

    def __init__(self, header: Header, memory: PackedMemory) -> None:
        self.header = header
        self.memory = memory
        self._bytes: Bytes = np.frombuffer(memory.view, np.uint8)

    @property
    def num_bytes(self) -> int:
        """Bytes of the file, and of memory."""
        return self.header.num_bytes

    def seal(self) -> memoryview:
        """Let nobody write any more; return all bytes."""
        self._bytes.setflags(write=False)
        return self.memory.view.toreadonly()

    def label(self) -> None:
        """Put the file's magic and header in front of the tensors."""
        encoded = msgspec.msgpack.encode(msgspec.structs.replace(self.header, checksum=self.checksum()))
        start = _MAGIC + len(encoded).to_bytes(8, "little") + encoded
        self._bytes[: len(start)] = np.frombuffer(start, np.uint8)

    def checksum(self, fetch: Callable[[int, int], None] = lambda start, end: None) -> str:
        """Return a digest of the CRC-32 of every piece of the tensors. Cost: reads them, several pieces at a time.

        fetch  brings the bytes from `start` to `end` before they are read
        """
        first = min((place.offset for place in self.header.places.values()), default=self.num_bytes)

        def of_piece(start: int) -> int:
            end = min(start + _PIECE, self.num_bytes)
            fetch(start, end)
            return zlib.crc32(self.memory.view[start:end])

        with ThreadPoolExecutor(_READERS) as readers:
            sums = list(readers.map(of_piece, range(first, self.num_bytes, _PIECE)))
        return hashlib.sha256(repr(sums).encode()).hexdigest()

    def tensor(self, name: str) -> Bytes:
        """Return a view of one tensor's bytes."""
        place = self.header.places[name]
        return self._bytes[place.offset : place.offset + place.num_bytes]


def try_open(path: Path, key: str) -> PackedFile | None:
    """Return a finished file of this key, checked; None if there is none. Its `memory` may be settled later."""
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
            packed, checksum = _taken(file.fileno(), header)
    except (OSError, msgspec.DecodeError):
        return None
    if checksum != header.checksum:
        _log.warning("%s is not what was written: the weights are packed again; check the disk", path)
        return None
    packed.seal()
    return packed


def _taken(descriptor: int, header: Header) -> tuple[PackedFile, str]:
    """Return an open file's bytes, mapped where they can be settled and copied where not, and their checksum."""

    def announce(start: int, end: int) -> None:
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_WILLNEED)  # in order: faults would not be

    mapped = PackedMemory.mapped(descriptor, header.num_bytes)
    if mapped is not None:
        packed = PackedFile(header, mapped)
        return packed, packed.checksum(announce)
    memory = PackedMemory.fresh(header.num_bytes)
    packed = PackedFile(header, memory)

    def copy(start: int, end: int) -> None:
        while start < end:
            done = os.preadv(descriptor, [memory.view[start:end]], start)
            if done == 0:
                raise OSError(f"the file ends at byte {start:,} of {header.num_bytes:,}")
            start += done

    copy(0, min((place.offset for place in header.places.values()), default=0))
    return packed, packed.checksum(copy)


def create(path: Path | None, header: Header, write: Callable[[PackedFile], None]) -> PackedFile:
    """Make the tensors with `write`, keep them at `path` and return them; unkept if that is None or cannot be written.

    Raises what `write` raises; nothing is left behind then.
    """
    packed = PackedFile(header, PackedMemory.fresh(header.num_bytes))
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
