"""Weights move from a file's pages into huge ones under their readers: same addresses, same bytes, at every moment."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from headrace.executor import packed_memory
from headrace.executor.packed_memory import HUGE_PAGE, PackedMemory, can_settle
from headrace.executor.settling import Settling

needs_linux = pytest.mark.skipif(not can_settle(), reason="this system does not move pages under their readers")
SIZES = [1, 4096, 4097, HUGE_PAGE - 1, HUGE_PAGE, 5 * HUGE_PAGE + 12_345, 21 * HUGE_PAGE]


def mapped(path: Path, num_bytes: int) -> tuple[PackedMemory, bytes]:
    content = np.random.default_rng(num_bytes).integers(0, 256, num_bytes, np.uint8).tobytes()
    path.write_bytes(content)
    with path.open("rb") as file:
        memory = PackedMemory.mapped(file.fileno(), num_bytes)
    assert memory is not None
    return memory, content


@needs_linux
@pytest.mark.parametrize("num_bytes", SIZES)
def test_settled_memory_has_the_file_s_bytes_at_the_same_place(tmp_path: Path, num_bytes: int) -> None:
    memory, content = mapped(tmp_path / "x", num_bytes)
    values = np.frombuffer(memory.view, np.uint8)
    address = values.ctypes.data
    assert address % HUGE_PAGE == 0
    assert memory.view == content
    assert not memory.is_settled
    while memory.settle_piece():
        assert not memory.is_settled
    assert memory.is_settled
    assert not memory.settle_piece()
    assert values.ctypes.data == address
    assert memory.view == content


@needs_linux
def test_what_is_settled_no_longer_follows_the_file(tmp_path: Path) -> None:
    memory, content = mapped(tmp_path / "x", 9 * HUGE_PAGE)
    Settling(memory, after_s=0.0).finish()
    with (tmp_path / "x").open("r+b") as file:
        file.write(bytes(9 * HUGE_PAGE))
    assert memory.view == content
    with pytest.raises(ValueError, match="read-only"):
        np.frombuffer(memory.view, np.uint8)[0] = 1


@needs_linux
def test_threads_that_read_meanwhile_see_the_same_bytes(tmp_path: Path) -> None:
    memory, _ = mapped(tmp_path / "x", 40 * HUGE_PAGE)
    words = np.frombuffer(memory.view, np.uint64)
    expected, is_done, found = int(words.sum()), threading.Event(), []

    def read() -> None:
        while True:
            is_last = is_done.is_set()
            found.append(int(words.sum()))
            if is_last:
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    Settling(memory, after_s=0.0).finish()
    is_done.set()
    for reader in readers:
        reader.join()
    assert set(found) == {expected}


@needs_linux
def test_memory_is_given_back_with_its_last_reader(tmp_path: Path) -> None:
    def ranges() -> int:
        return sum(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())

    memory, _ = mapped(tmp_path / "x", 20 * HUGE_PAGE)
    memory.settle_piece()
    kept = np.frombuffer(memory.view, np.uint8)[-5:]
    assert ranges() == 1
    del memory
    assert ranges() == 1
    del kept
    assert ranges() == 0


@needs_linux
def test_a_stop_leaves_the_rest_where_it_is(tmp_path: Path) -> None:
    memory, content = mapped(tmp_path / "x", 40 * HUGE_PAGE)
    settling = Settling(memory, after_s=3600.0)
    settling.stop()
    settling.stop()
    assert not memory.is_settled
    assert memory.view == content


@needs_linux
def test_where_no_memory_is_left_the_file_s_pages_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, content = mapped(tmp_path / "x", 9 * HUGE_PAGE)
    monkeypatch.setattr(packed_memory, "_replace", lambda *where: False)
    assert not memory.settle_piece()
    assert memory.is_settled
    assert memory.view == content


@pytest.mark.parametrize("switch", ["always madvise [never]", None])
def test_a_system_without_huge_pages_maps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str | None
) -> None:
    if switch is not None:
        (tmp_path / "switch").write_text(switch)
    monkeypatch.setattr(packed_memory, "_SWITCH", tmp_path / "switch")
    (tmp_path / "x").write_bytes(b"abc")
    with (tmp_path / "x").open("rb") as file:
        assert PackedMemory.mapped(file.fileno(), 3) is None
    memory = PackedMemory.fresh(3)
    assert memory.is_settled
    memory.view[:] = b"abc"
    assert bytes(memory.view) == b"abc"
