"""A directory as a place for KV blocks: one file per block, bounded in bytes, usable again after a restart.

Owns the files below its directory. A file is written beside its final name and renamed when complete, so a crash leaves
no half block under a name that counts; whether its content is whole is the frame's matter (`frames`).
Invariant: the files on record take at most `max_bytes`; the one worth least goes first (`kv.worth`). After a
restart the order of last use is that of the files' times. Several processes may share a directory: each finds the
others' files, each counts its own bound.
Implements `core.protocols.Transport`; used by one I/O thread. Raises OSError when the disk does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.core.protocols import Clock
from headrace.kv.transfer.frames import KEY_BYTES
from headrace.kv.worth import Shelf, Worth

_SUFFIX = ".kv"
_GUESS_S = 3e-3  # that a block saves, of which only the file is known
_STALE_S = 600.0  # a partial file that old has lost its writer


@dataclass(slots=True, kw_only=True)
class _File(Worth):
    """One file on record."""

    num_bytes: int


class DiskTransport:
    """Keeps frames in files below `directory`, `max_bytes` of them at most."""

    def __init__(self, directory: Path, max_bytes: int, clock: Clock) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._clock = clock
        self._files: Shelf[_File] = Shelf()
        self._is_open = False
        self.num_bytes = 0  # of the files on record

    def has(self, keys: Sequence[bytes]) -> int:
        """Count the leading keys that have a file."""
        self._open()
        count = 0
        for key in keys:
            if key not in self._files and not self._adopt(key):
                break
            count += 1
        return count

    def get(self, keys: Sequence[bytes], into: Sequence[memoryview]) -> list[int | None]:
        """Read one file into each buffer; return the bytes read, None where there is no such file."""
        self._open()
        return [self._read(key, buffer) for key, buffer in zip(keys, into, strict=True)]

    def put(self, key: bytes, frame: memoryview, saves_s: float) -> bool:
        """Write a file; False if it is worth less than what would have to go for it."""
        self._open()
        now, size = self._clock.now(), frame.nbytes
        if key in self._files:
            self._files.use(key, now)
            return True
        entry = _File(saves_s=saves_s, used_s=now, num_bytes=size)
        while self.num_bytes + size > self._max_bytes:
            least = self._files.least(now)
            worst = None if least is None else self._files.get(least)
            if least is None or worst is None or worst.at(now) > entry.at(now):
                return False
            self.drop(least)
        self._write(key, frame)
        self._files.put(key, entry)
        self.num_bytes += size
        return True

    def drop(self, key: bytes) -> None:
        """Remove a file, if it is there."""
        entry = self._files.pop(key)
        if entry is not None:
            self.num_bytes -= entry.num_bytes
        self._path(key).unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self._directory / name[:2] / (name + _SUFFIX)

    def _open(self) -> None:
        """Make the directory and take the files in it on record, the first time; again after a failure."""
        if self._is_open:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self._directory, os.W_OK):
            raise PermissionError(errno.EACCES, "the directory cannot be written")
        self._files, self.num_bytes = Shelf(), 0
        now, wall = self._clock.now(), time.time()
        for path, stat in sorted(self._found(), key=lambda found: found[1].st_mtime):
            if path.suffix != _SUFFIX:
                if wall - stat.st_mtime > _STALE_S:
                    path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(ValueError):
                key = bytes.fromhex(path.stem)
                if len(key) == KEY_BYTES:
                    age_s = max(wall - stat.st_mtime, 0.0)
                    self._files.put(key, _File(saves_s=_GUESS_S, used_s=now - age_s, num_bytes=stat.st_size))
                    self.num_bytes += stat.st_size
        while self.num_bytes > self._max_bytes:
            self.drop(next(iter(self._files)))
        self._is_open = True

    def _found(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield every file one level below the directory; those that go away meanwhile are passed over."""
        with os.scandir(self._directory) as folders:
            for folder in folders:
                if not folder.is_dir(follow_symlinks=False):
                    continue
                with os.scandir(folder) as files:
                    for file in files:
                        with contextlib.suppress(FileNotFoundError):
                            if file.is_file(follow_symlinks=False):
                                yield Path(file.path), file.stat()

    def _adopt(self, key: bytes) -> bool:
        """Take a file that another process has written on record."""
        try:
            size = self._path(key).stat().st_size
        except FileNotFoundError:
            return False
        self._files.put(key, _File(saves_s=_GUESS_S, used_s=self._clock.now(), num_bytes=size))
        self.num_bytes += size
        return True

    def _read(self, key: bytes, into: memoryview) -> int | None:
        path = self._path(key)
        try:
            with path.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > into.nbytes:
                    return into.nbytes + 1  # too long to be a block of ours
                num_bytes = 0
                while count := file.readinto(into[num_bytes:]):
                    num_bytes += count
            os.utime(path)
        except FileNotFoundError:
            self.drop(key)
            return None
        if key in self._files:
            self._files.use(key, self._clock.now())
        return num_bytes

    def _write(self, key: bytes, frame: memoryview) -> None:
        """Write beside the final name, then rename. Not forced to the platter: a torn file is found by its seal."""
        path = self._path(key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb", buffering=0) as file:
                rest = frame
                while rest.nbytes:
                    rest = rest[file.write(rest) :]
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
