from __future__ import annotations

import pytest

from headrace.sampling import derive_seed, philox4x32, uniform


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(key: tuple, counter: tuple, words: tuple) -> None:
    assert philox4x32(key, counter) == words


def test_uniform_takes_the_top_53_bits_of_the_first_two_words() -> None:
    assert uniform(0, 0) == ((0x6627E8D5 << 32 | 0xE169C58D) >> 11) / 2**53


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    draws = [uniform(seed, position) for seed in (0, 1, -1, 2**63) for position in range(500)]
    assert len(set(draws)) == 2000
    assert all(0 <= u < 1 for u in draws)
    counts = [sum(int(u * 10) == k for u in draws) for k in range(10)]
    assert sum((count - 200) ** 2 / 200 for count in counts) < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_negative_seeds_are_taken_modulo_two_to_the_64() -> None:
    assert uniform(-1, 3) == uniform(2**64 - 1, 3)
    assert derive_seed(-1, 2) == derive_seed(2**64 - 1, 2)


def test_choice_zero_keeps_the_seed_and_the_others_get_their_own() -> None:
    seeds = [derive_seed(42, index) for index in range(100)]
    assert seeds[0] == 42
    assert len(set(seeds)) == 100
    assert not set(seeds[1:]) & {derive_seed(43, index) for index in range(100)}
