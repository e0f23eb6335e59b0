"""A file on its way: bytes go to NAME.part, and NAME appears only when all of them are there and their hash is right.

Owns NAME.part while a pull runs. Invariant: a reader never sees half a file under its final name; a failed pull leaves
the part for the next one, except where its hash is wrong, since going on from wrong bytes cannot end well.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from headrace.core.errors import PullFailed

CHUNK_BYTES = 1 << 20


class Progress(Protocol):
    """Hears how far a pull is. Called often and from the pulling thread; must return quickly."""

    def __call__(self, done_bytes: int, total_bytes: int | None, what: str, /) -> None:
        """Report `done_bytes` of `total_bytes` (None: not known yet) of the step called `what`."""
        ...


def silent(done_bytes: int, total_bytes: int | None, what: str, /) -> None:
    """Hear progress and say nothing."""


class PartialFile:
    """NAME.part, opened to append. `total_bytes` is the size when complete, where it is known."""

    def __init__(self, target: Path, *, total_bytes: int | None = None) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.total_bytes = total_bytes
        self._file: IO[bytes] | None = None

    @property
    def num_bytes(self) -> int:
        """Count the bytes that are here."""
        if self._file is not None:
            return self._file.tell()
        return self.path.stat().st_size if self.path.exists() else 0

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._failed(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, chunk: bytes) -> None:
        """Write `chunk` at the end; PullFailed with the numbers when the disk is full."""
        assert self._file is not None, "opened with `with`"
        view = memoryview(chunk)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise self._failed(error) from error

    def restart(self) -> None:
        """Throw away what is here."""
        assert self._file is not None, "opened with `with`"
        self._file.truncate(0)
        self._file.seek(0)

    def finish(self, sha256: str | None, progress: Progress) -> str:
        """Check the hash, give the file its final name and return the hash.

        Raises PullFailed when the hash is another one; the part is then removed.
        """
        found = hash_file(self.path, progress)
        if sha256 is not None and found != sha256:
            self.path.unlink()
            raise PullFailed(
                f"{self.target.name} has sha256 {found}, expected {sha256}; the download was damaged or the file has "
                "changed at its source; it is removed, pull again"
            )
        os.replace(self.path, self.target)
        return found

    def _failed(self, error: OSError) -> PullFailed:
        return disk_failure(error, self.path, self.num_bytes, self.total_bytes)


def disk_failure(error: OSError, path: Path, done_bytes: int, total_bytes: int | None) -> PullFailed:
    """Make the error for a write that failed; a full disk says how much is needed."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return PullFailed(f"cannot write {path}: {error.strerror}; check the permissions of the cache directory")
    return no_space(path, done_bytes, total_bytes)


def no_space(path: Path, done_bytes: int, total_bytes: int | None, free_bytes: int = 0) -> PullFailed:
    """Make the error for a disk that is, or would get, full."""
    needed = f"{(total_bytes - done_bytes) / 1e6:,.0f} MB more" if total_bytes is not None else "more space"
    return PullFailed(
        f"no disk space for {path}: {needed} needed, {free_bytes / 1e6:,.0f} MB free; "
        f"{done_bytes / 1e6:,.0f} MB are kept and the pull goes on from there: free some space and pull again, "
        "or set another cache_dir"
    )


def hash_file(path: Path, progress: Progress) -> str:
    """Return the sha256 of a file in hex."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    done = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(done, total, f"verify {path.name.removesuffix('.part')}")
    return digest.hexdigest()
