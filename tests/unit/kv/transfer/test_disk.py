from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.kv.transfer import DiskTransport
from headrace.testing import VirtualClock

SIZE = 64


def key(number: int) -> bytes:
    return number.to_bytes(20, "big")


def frame(number: int, size: int = SIZE) -> memoryview:
    return memoryview(bytearray([number % 256]) * size)


def opened(path: Path, max_frames: int = 9, clock: VirtualClock | None = None) -> DiskTransport:
    return DiskTransport(path / "kv", max_frames * SIZE, clock or VirtualClock())


def test_frames_come_back_and_missing_ones_are_told(tmp_path: Path) -> None:
    disk = opened(tmp_path)
    assert disk.has([key(1)]) == 0
    assert disk.put(key(1), frame(1), 1.0)
    assert disk.put(key(2), frame(2), 1.0)
    buffers = [frame(0), frame(0), frame(0)]
    assert disk.has([key(1), key(2), key(3)]) == 2
    assert disk.get([key(1), key(3), key(2)], buffers) == [SIZE, None, SIZE]
    assert [bytes(buffers[0]), bytes(buffers[2])] == [bytes(frame(1)), bytes(frame(2))]
    disk.drop(key(1))
    assert disk.has([key(1)]) == 0
    assert disk.num_bytes == SIZE


def test_a_restart_finds_what_was_there_in_order_of_use(tmp_path: Path) -> None:
    first = opened(tmp_path)
    for number in range(3):
        first.put(key(number), frame(number), 1.0)
        os.utime(next((tmp_path / "kv").glob(f"*/{key(number).hex()}.kv")), (1000 + number, 1000 + number))
    again = opened(tmp_path, max_frames=2)
    assert again.has([key(0)]) == 0, "the bound has become smaller: the oldest goes"
    assert again.has([key(1), key(2)]) == 2
    assert again.num_bytes == 2 * SIZE


def test_the_bound_holds_and_what_is_worth_more_stays(tmp_path: Path) -> None:
    clock = VirtualClock()
    disk = opened(tmp_path, max_frames=2, clock=clock)
    disk.put(key(1), frame(1), 5.0)
    disk.put(key(2), frame(2), 1.0)
    assert not disk.put(key(3), frame(3), 0.1)
    assert disk.put(key(3), frame(3), 2.0)
    assert disk.has([key(1), key(3)]) == 2
    assert disk.has([key(2)]) == 0
    assert not disk.put(key(4), frame(4, 3 * SIZE), 99.0)
    assert disk.num_bytes <= 2 * SIZE
    assert sum(f.stat().st_size for f in (tmp_path / "kv").rglob("*.kv")) == disk.num_bytes


def test_another_process_finds_files_written_meanwhile(tmp_path: Path) -> None:
    ours, theirs = opened(tmp_path), opened(tmp_path)
    assert ours.has([key(1)]) == 0
    theirs.put(key(1), frame(1), 1.0)
    assert ours.has([key(1)]) == 1
    theirs.drop(key(1))
    assert ours.get([key(1)], [frame(0)]) == [None]
    assert ours.num_bytes == 0


def test_files_of_others_are_left_alone_and_lost_partial_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "kv" / "00"
    folder.mkdir(parents=True)
    (folder / "notes.kv").write_text("mine")
    (folder / "abc.1.tmp").write_text("half")
    os.utime(folder / "abc.1.tmp", (1, 1))
    (folder / "new.2.tmp").write_text("being written")
    disk = opened(tmp_path, max_frames=1)
    disk.put(key(1), frame(1), 1.0)
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".kv") == ["new.2.tmp"]
    assert (folder / "notes.kv").exists()
    assert disk.num_bytes == SIZE


def test_short_and_overlong_files_are_not_taken_for_whole_ones(tmp_path: Path) -> None:
    disk = opened(tmp_path)
    disk.put(key(1), frame(1, 10), 1.0)
    disk.put(key(2), frame(2, 100), 1.0)
    disk.put(key(3), frame(3, 0), 1.0)
    sizes = disk.get([key(1), key(2), key(3)], [frame(0), frame(0), frame(0)])
    assert (sizes[0], sizes[2]) == (10, 0)
    assert sizes[1] not in (SIZE, None)


def test_a_directory_that_cannot_be_made_is_an_os_error_until_it_can(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("a file stands in the way")
    disk = opened(tmp_path)
    with pytest.raises(OSError, match="exists"):
        disk.has([key(1)])
    (tmp_path / "kv").unlink()
    assert disk.put(key(1), frame(1), 1.0)


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    opened(tmp_path).put(key(1), frame(1), 1.0)
    (file,) = (tmp_path / "kv").rglob("*.kv")
    assert [path.stat().st_mode & 0o077 for path in (file, file.parent, file.parent.parent)] == [0, 0, 0]
