from __future__ import annotations

from headrace.kv.worth import Shelf, Worth


def shelf_of(*entries: tuple[bytes, float, float, int]) -> Shelf[Worth]:
    shelf: Shelf[Worth] = Shelf()
    for key, saves_s, used_s, num_uses in entries:
        shelf.put(key, Worth(saves_s=saves_s, used_s=used_s, num_uses=num_uses))
    return shelf


def test_of_equal_entries_the_one_unused_for_longest_is_worth_least() -> None:
    shelf = shelf_of((b"a", 1.0, 0.0, 0), (b"b", 1.0, 50.0, 0))
    assert shelf.least(100.0) == b"a"
    shelf.use(b"a", 100.0)
    assert shelf.least(100.0) == b"b"


def test_what_is_used_often_or_dear_to_compute_outlives_what_came_later() -> None:
    assert shelf_of((b"often", 1.0, 0.0, 9), (b"once", 1.0, 90.0, 0)).least(100.0) == b"once"
    assert shelf_of((b"dear", 9.0, 0.0, 0), (b"cheap", 1.0, 90.0, 0)).least(100.0) == b"cheap"


def test_entries_that_may_not_go_are_passed_over() -> None:
    shelf = shelf_of((b"a", 1.0, 0.0, 0), (b"b", 1.0, 50.0, 0))
    assert shelf.least(100.0, lambda entry: entry.used_s > 0) == b"b"
    assert shelf.least(100.0, lambda entry: False) is None
    assert Shelf[Worth]().least(0.0) is None
