"""Packed weights on disk: one file per model, format and policy, read as it is into memory of huge pages.

Owns the file's layout and its life: written to a temporary name, renamed when complete, read whole. Huge pages are
worth the copy: with small ones products of some rows run slower, waiting for addresses, see design note 018.
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
import mmap
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

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
        encoded = msgspec.msgpack.encode(msgspec.structs.replace(self.header, checksum=self.checksum()))
        start = _MAGIC + len(encoded).to_bytes(8, "little") + encoded
        self._bytes[: len(start)] = np.frombuffer(start, np.uint8)

    def checksum(self) -> str:
        """Return a digest of the CRC-32 of every piece of the tensors. Cost: reads them, several pieces at a time."""
        first = min((place.offset for place in self.header.places.values()), default=self.num_bytes)
        pieces = [self._memory[at : at + _PIECE] for at in range(first, self.num_bytes, _PIECE)]
        with ThreadPoolExecutor(_READERS) as readers:
            return hashlib.sha256(repr(list(readers.map(zlib.crc32, pieces))).encode()).hexdigest()

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
    except (OSError, msgspec.DecodeError):
        return None
    if packed.checksum() != header.checksum:
        _log.warning("%s is not what was written: the weights are packed again; check the disk", path)
        return None
    packed.seal()
    return packed


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
