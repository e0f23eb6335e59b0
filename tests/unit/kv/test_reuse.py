from __future__ import annotations

from headrace.kv.reuse import ReuseHistory


def test_before_anything_is_known_older_blocks_are_less_likely() -> None:
    history = ReuseHistory(2, num_blocks=1000)
    chances = [history.chance(0, age) for age in (0, 100, 1000, 10_000, 10**9)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > chances[-1]


def test_a_kind_that_is_used_again_is_told_from_one_that_is_not() -> None:
    history = ReuseHistory(2, num_blocks=64)
    for _ in range(400):
        history.note_reuse(0, 10)
        history.note_eviction(1, 10)
    assert history.chance(0, 5) > 0.9
    assert history.chance(1, 5) < 0.1


def test_a_block_older_than_every_reuse_is_given_up() -> None:
    history = ReuseHistory(1, num_blocks=64)
    for _ in range(300):
        history.note_reuse(0, 2)
        history.note_eviction(0, 500)
    assert history.chance(0, 1) > 0.4
    assert history.chance(0, 400) < 0.05


def test_old_experience_fades() -> None:
    history = ReuseHistory(1, num_blocks=2)
    for _ in range(2000):
        history.note_reuse(0, 1)
    for _ in range(20_000):
        history.note_eviction(0, 1)
        history.note_block()
    assert history.chance(0, 1) < 0.05
