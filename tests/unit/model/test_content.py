"""A digest covers every byte; a note saves reading them again and never tells of another content."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from headrace.model import content
from headrace.model.mapping import map_file


def digest(path: Path, notes: Path | None) -> str:
    memory, state = map_file(path)
    return content.Content(path, state, np.frombuffer(memory, np.uint8)).digest(notes)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of several pieces, last changed some time ago."""
    monkeypatch.setattr(content, "_PIECE", 1000)
    monkeypatch.setattr(content, "_SETTLED_NS", 0)
    path = tmp_path / "model"
    path.write_bytes(np.random.default_rng(0).bytes(3500))
    return path


@pytest.mark.parametrize("place", [0, 999, 1000, 3499])
def test_a_changed_byte_anywhere_is_another_digest(model: Path, place: int) -> None:
    before = digest(model, None)
    raw = bytearray(model.read_bytes())
    raw[place] ^= 1
    model.write_bytes(raw)
    assert digest(model, None) != before


def test_pieces_cannot_change_places(model: Path) -> None:
    before, raw = digest(model, None), model.read_bytes()
    model.write_bytes(raw[1000:2000] + raw[:1000] + raw[2000:])
    assert digest(model, None) != before


def test_a_file_that_did_not_change_is_not_read_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(model, tmp_path / "notes")
    monkeypatch.setattr(content, "digest_of", None)
    assert digest(model, tmp_path / "notes") == before
    assert len(list((tmp_path / "notes").iterdir())) == 1


def test_a_change_in_place_with_its_time_restored_is_seen(model: Path, tmp_path: Path) -> None:
    before, times = digest(model, tmp_path / "notes"), model.stat()
    with model.open("r+b") as file:
        file.seek(1234)
        file.write(b"!")
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model.stat().st_mtime_ns == times.st_mtime_ns
    assert digest(model, tmp_path / "notes") == digest(model, None) != before


def test_a_replaced_file_is_read_even_when_its_times_are_the_old_ones(model: Path, tmp_path: Path) -> None:
    before, times = digest(model, tmp_path / "notes"), model.stat()
    other = tmp_path / "other"
    other.write_bytes(bytes(3500))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(model)
    assert digest(model, tmp_path / "notes") == digest(model, None) != before


def test_nothing_is_noted_of_a_file_that_has_just_changed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_SETTLED_NS", 2_000_000_000)
    os.utime(model, ns=(time.time_ns(), time.time_ns()))
    digest(model, tmp_path / "notes")
    assert not (tmp_path / "notes").exists()


def test_nothing_is_noted_of_a_file_that_was_replaced_after_it_was_opened(model: Path, tmp_path: Path) -> None:
    memory, state = map_file(model)
    other = tmp_path / "other"
    other.write_bytes(bytes(3500))
    other.replace(model)
    content.Content(model, state, np.frombuffer(memory, np.uint8)).digest(tmp_path / "notes")
    assert not (tmp_path / "notes").exists()


@pytest.mark.parametrize("note", [b"", b"{}", b"\xff\xfe", b'{"path":"x","state":1,"digest":"y"}'])
def test_a_note_that_cannot_be_read_is_written_again(model: Path, tmp_path: Path, note: bytes) -> None:
    before = digest(model, tmp_path / "notes")
    (place,) = (tmp_path / "notes").iterdir()
    place.write_bytes(note)
    assert digest(model, tmp_path / "notes") == before
    assert place.read_bytes() != note


def test_where_notes_cannot_be_written_the_digest_is_the_same(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert digest(model, tmp_path / "file" / "notes") == digest(model, None)
