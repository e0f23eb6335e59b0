"""What model files hold, as digests: equal bytes give equal digests, wherever they lie and whenever they were written.

Owns the notes that save reading everything at each start: one small file per path with its digest and what the file
system says of it (device, inode, length, times of content and of status), of the very file that was read.
Invariant: a note counts only while all of that is unchanged. Nothing is noted of a file that changed within the last
seconds: another change may leave the same times. Without a directory for notes every digest reads every byte.
Callers: the checkpoints. The digest is a SHA-256 of the SHA-256 of each piece, so that all cores take part.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

_PIECE = 8 << 20
_SETTLED_NS = 2_000_000_000  # coarser than the clock of any file system in use but FAT


class FileState(msgspec.Struct, frozen=True):
    """What the file system says of a file: another content has another state."""

    device: int
    inode: int
    num_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        """Take it from a stat."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class _Note(msgspec.Struct, frozen=True):
    """A digest and the file it is of."""

    path: str
    state: FileState
    digest: str


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of one open file, its path and its state when it was opened."""

    path: Path
    state: FileState
    data: NDArray[np.uint8]

    def digest(self, notes: Path | None) -> str:
        """Return the digest of all bytes. Cost: reads them, on every core, unless a note in `notes` tells it."""
        place = (
            None if notes is None else notes / f"{hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:32]}"
        )
        if place is not None and (known := _read_note(place)) is not None and known.state == self.state:
            return known.digest
        began_ns = time.time_ns()
        found = digest_of(self.data)
        if place is not None and began_ns - max(self.state.modified_ns, self.state.changed_ns) > _SETTLED_NS:
            with contextlib.suppress(OSError):
                if FileState.of(self.path.stat()) == self.state:  # not replaced or written to while it was read
                    _write_note(place, _Note(str(self.path), self.state, found))
        return found


def digest_of(data: NDArray[np.uint8]) -> str:
    """Return the digest of bytes in memory, pieces of them hashed at the same time."""
    pieces = [data[at : at + _PIECE].data for at in range(0, len(data), _PIECE)]
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), len(pieces) or 1, 16)) as workers:
        return hashlib.sha256(b"".join(workers.map(lambda piece: hashlib.sha256(piece).digest(), pieces))).hexdigest()


def _read_note(place: Path) -> _Note | None:
    """Return the note in a file; None if there is none that can be read."""
    try:
        return msgspec.json.decode(place.read_bytes(), type=_Note)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _write_note(place: Path, note: _Note) -> None:
    """Write a note whole or not at all. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(f".{os.getpid()}.tmp")
    try:
        partial.write_bytes(msgspec.json.encode(note))
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
