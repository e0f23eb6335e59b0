"""A packed file is read when it is finished and of this model and policy; in every other case it is made again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from headrace.executor import packed_cache, packed_memory
from headrace.executor.native import problem as native_problem
from headrace.executor.packed_cache import PackedFile
from headrace.executor.weights_pack import load_weights
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.ops.native.library import Pool
from headrace.testing.checkpoints import write_checkpoint

SIZES = {"a": 100, "b": 64, "c": 5000}


def write(packed: PackedFile) -> None:
    for value, name in enumerate(SIZES, start=1):
        packed.tensor(name)[:] = value


def made(path: Path, key: str = "k") -> PackedFile:
    return packed_cache.create(path, packed_cache.lay_out(key, SIZES), write)


def test_a_finished_file_is_read_again_with_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "x.hrp"
    made(path)
    opened = packed_cache.try_open(path, "k")
    assert opened is not None
    for value, (name, size) in enumerate(SIZES.items(), start=1):
        assert opened.tensor(name).tolist() == [value] * size
        assert opened.tensor(name).ctypes.data % 64 == 0
    assert [file.name for file in path.parent.iterdir()] == ["x.hrp"]


def test_what_has_settled_is_a_copy_that_nobody_can_write(tmp_path: Path) -> None:
    path = tmp_path / "x.hrp"
    packed = made(path)
    opened = packed_cache.try_open(path, "k")
    assert opened is not None
    while opened.memory.settle_piece():
        pass
    with path.open("r+b") as file:  # in place: a mapping would show it
        file.write(b"\xff" * path.stat().st_size)
    for kept in (packed, opened):
        assert kept.tensor("c").tolist() == [3] * 5000
        with pytest.raises(ValueError, match="read-only"):
            kept.tensor("c")[:] = 0


def test_pieces_of_a_large_file_come_together(tmp_path: Path) -> None:
    sizes = {"a": (40 << 20) + 77, "b": 64}

    def count(packed: PackedFile) -> None:
        for name in sizes:
            packed.tensor(name)[:] = np.random.default_rng(0).integers(1, 256, sizes[name], np.uint8)

    path = tmp_path / "x.hrp"
    packed = packed_cache.create(path, packed_cache.lay_out("k", sizes), count)
    opened = packed_cache.try_open(path, "k")
    assert opened is not None
    for name in sizes:
        assert np.array_equal(opened.tensor(name), packed.tensor(name))


def test_a_system_that_cannot_settle_copies_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_memory, "_SWITCH", tmp_path / "none")
    path = tmp_path / "x.hrp"
    packed = made(path)
    opened = packed_cache.try_open(path, "k")
    assert opened is not None
    assert opened.memory.is_settled
    assert all(np.array_equal(opened.tensor(name), packed.tensor(name)) for name in SIZES)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert packed_cache.try_open(path, "k") is None


def test_a_file_of_another_key_is_not_used(tmp_path: Path) -> None:
    made(tmp_path / "x.hrp", key="other")
    assert packed_cache.try_open(tmp_path / "x.hrp", "k") is None


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "magic", "header", "length"])
def test_a_damaged_file_is_not_used(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.hrp"
    made(path)
    raw = bytearray(path.read_bytes())
    match damage:
        case "empty":
            raw.clear()
        case "cut":
            del raw[-1]
        case "longer":
            raw += b"\0"
        case "magic":
            raw[0] ^= 1
        case "header":
            raw[20:60] = b"\xc1" * 40
        case _:
            raw[8:16] = b"\xff" * 8
    path.write_bytes(raw)
    assert packed_cache.try_open(path, "k") is None


@pytest.mark.parametrize("place", [4096, 4096 + 100, -3000])
def test_a_damaged_body_is_not_used_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int) -> None:
    path = tmp_path / "x.hrp"
    made(path)
    raw = bytearray(path.read_bytes())
    start = packed_cache.try_open(path, "k").header.places["a"].offset  # type: ignore[union-attr]
    at = start + place - 4096 if place > 0 else len(raw) + place
    raw[at] ^= 1
    path.write_bytes(raw)
    assert packed_cache.try_open(path, "k") is None
    assert [record.message for record in caplog.records] == [
        f"{path} is not what was written: the weights are packed again; check the disk"
    ]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(packed: PackedFile) -> None:
        packed.tensor("a")[:] = 1
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        packed_cache.create(tmp_path / "x.hrp", packed_cache.lay_out("k", SIZES), fail)
    assert list(tmp_path.iterdir()) == []


def test_where_no_file_can_be_written_the_weights_live_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    packed = made(tmp_path / "file" / "x.hrp")
    assert packed.tensor("c").tolist() == [3] * 5000


def test_the_key_follows_model_policy_and_content(tmp_path: Path) -> None:
    def key(directory: Path, policy: str = "auto") -> str:
        with open_checkpoint(directory) as checkpoint:  # type: ignore[attr-defined]
            return packed_cache.fingerprint(build_program(checkpoint.config), checkpoint, policy)

    first = write_checkpoint(tmp_path / "a", "llama")
    moved = write_checkpoint(tmp_path / "b", "llama")
    other = write_checkpoint(tmp_path / "c", "llama", seed=1)
    assert key(first) == key(moved)
    assert len({key(first), key(other), key(first, "int8")}) == 3
    assert np.all([len(key(path)) == 64 for path in (first, other)])


@pytest.mark.skipif(native_problem() is not None, reason="the native library is not built here")
def test_weights_changed_in_one_byte_and_damaged_files_are_packed_again(tmp_path: Path) -> None:
    """The byte is in the middle of the largest tensor, the file's length and time are the old ones."""

    def packed(cache: Path | None) -> tuple[bool, bytes]:
        with open_checkpoint(model, cache_directory=cache) as checkpoint, Pool(1) as pool:  # type: ignore[attr-defined]
            program = build_program(checkpoint.config)
            weights = load_weights(program, checkpoint, pool, quantization="auto", cache_dir=cache)
            return weights.was_cached, b"".join(weights.packed.tensor(name).tobytes() for name in weights.structs())

    model, cache = write_checkpoint(tmp_path / "model", "llama"), tmp_path / "cache"
    (file,) = model.glob("*.safetensors")
    settled = time.time_ns() - 3_600_000_000_000
    os.utime(file, ns=(settled, settled))
    _, before = packed(cache)
    assert packed(cache) == (True, before)
    raw = bytearray(file.read_bytes())
    raw[_middle_of_largest(raw)] ^= 0x40
    with file.open("r+b") as opened:
        opened.write(raw)
    os.utime(file, ns=(settled, settled))
    was_cached, after = packed(cache)
    assert not was_cached
    assert after == packed(None)[1] != before
    assert packed(cache) == (True, after)
    for kept in cache.glob("*.hrp"):
        body = bytearray(kept.read_bytes())
        body[-5000:-1000] = bytes(4000)
        kept.write_bytes(body)
    assert packed(cache) == (False, after)
    assert packed(cache) == (True, after)


def _middle_of_largest(raw: bytes) -> int:
    """Return the place of the high byte of a number in the middle of a file's largest tensor."""
    end = 8 + int.from_bytes(raw[:8], "little")
    places = [entry["data_offsets"] for name, entry in json.loads(raw[8:end]).items() if name != "__metadata__"]
    first, last = max(places, key=lambda place: place[1] - place[0])
    return int(end + (first + last) // 8 * 4 + 3)
