"""Merges from scores, and their copy on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.text import merge_cache
from headrace.text.merge_cache import cached_merges
from headrace.text.sentencepiece_merges import merges_from_scores

PIECES = ["a", "b", "ab", "ba", "aba", "abab"]
SCORES = [-9.0, -9.0, -1.0, -2.0, -3.0, -4.0]
MERGES = [("a", "b"), ("b", "a"), ("ab", "a"), ("ab", "ab")]


def test_each_piece_has_the_one_merge_that_builds_it() -> None:
    assert merges_from_scores(PIECES, SCORES) == MERGES


def test_a_piece_that_no_merging_reaches_has_none() -> None:
    assert merges_from_scores(["a", "b", "c", "ab", "bc", "abc"], [0, 0, 0, -1, -3, -2]) == [
        ("a", "b"),
        ("ab", "c"),
        ("b", "c"),
    ]
    assert ("a", "bc") not in merges_from_scores(["a", "b", "c", "ab", "abc"], [0, 0, 0, -1, -2])
    assert merges_from_scores(["a", "b", "aab"], [0, 0, -1]) == []


def test_a_whole_that_ranks_before_its_part_is_built_all_the_same() -> None:
    assert merges_from_scores(["a", "b", "ab", "abb"], [0, 0, -5, -1]) == [("ab", "b"), ("a", "b")]


def test_a_second_start_reads_what_the_first_one_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_merges(PIECES, SCORES, tmp_path)
    monkeypatch.setattr(merge_cache, "merges_from_scores", None)  # would fail if it were called
    assert cached_merges(PIECES, SCORES, tmp_path) == MERGES
    assert len(list(tmp_path.glob("tokenizers/*"))) == 1


def test_another_vocabulary_does_not_get_these_merges(tmp_path: Path) -> None:
    cached_merges(PIECES, SCORES, tmp_path)
    assert cached_merges(PIECES, [*SCORES[:2], -2.0, -1.0, -3.0, -4.0], tmp_path) != MERGES


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 64])
def test_a_damaged_copy_is_written_anew(tmp_path: Path, damage: bytes) -> None:
    cached_merges(PIECES, SCORES, tmp_path)
    (copy,) = tmp_path.glob("tokenizers/*")
    whole = copy.read_bytes()
    copy.write_bytes(damage)
    assert cached_merges(PIECES, SCORES, tmp_path) == MERGES
    assert copy.read_bytes() == whole


def test_a_directory_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a directory")
    assert cached_merges(PIECES, SCORES, in_the_way) == MERGES
    assert cached_merges(PIECES, SCORES, None) == MERGES
