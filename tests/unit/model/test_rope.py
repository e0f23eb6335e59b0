"""Rotation frequencies of every kind, checked by what each kind promises."""

from __future__ import annotations

import math

import pytest

from headrace.model import RopeConfig
from headrace.model.program import RopeTable
from headrace.model.rope import rope_table


def table(**fields: object) -> RopeTable:
    return rope_table(RopeConfig(theta=10000.0, **fields), head_dim=64, max_positions=4096)  # type: ignore[arg-type]


def turns(freq: float, positions: int) -> float:
    return positions * freq / (2 * math.pi)


def test_default_frequencies_fall_from_one_by_powers_of_theta() -> None:
    plain = table()
    assert plain.rotary_dim == 64
    assert plain.inv_freq[0] == 1.0
    assert plain.inv_freq[16] == pytest.approx(0.01)
    assert plain.scale == 1.0


def test_a_part_of_the_head_may_turn() -> None:
    assert table(rotary_dim=16).rotary_dim == 16


def test_linear_divides_every_frequency() -> None:
    assert table(kind="linear", factor=4.0).inv_freq == pytest.approx([f / 4 for f in table().inv_freq])


def test_llama3_keeps_fast_pairs_divides_slow_ones_and_falls_in_between() -> None:
    stretched = table(kind="llama3", factor=8.0, original_max_positions=1024)
    for freq, plain in zip(stretched.inv_freq, table().inv_freq, strict=True):
        if turns(plain, 1024) >= 4:
            assert freq == plain
        elif turns(plain, 1024) <= 1:
            assert freq == pytest.approx(plain / 8)
        else:
            assert plain / 8 < freq < plain
    assert list(stretched.inv_freq) == sorted(stretched.inv_freq, reverse=True)


def test_yarn_keeps_fast_pairs_divides_slow_ones_and_warms_the_scores() -> None:
    stretched = table(kind="yarn", factor=4.0, original_max_positions=1024)
    for freq, plain in zip(stretched.inv_freq, table().inv_freq, strict=True):
        if turns(plain, 1024) >= 40:
            assert freq == plain
        elif turns(plain, 1024) <= 0.7:
            assert freq == pytest.approx(plain / 4)
        else:
            assert plain / 4 <= freq <= plain
    assert stretched.scale == pytest.approx(1 + 0.1 * math.log(4))


def test_a_stated_attention_factor_wins() -> None:
    assert table(kind="yarn", factor=4.0, original_max_positions=1024, attention_factor=0.9).scale == 0.9


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_a_factor_of_one_changes_nothing(kind: str) -> None:
    stretched = table(kind=kind, factor=1.0, original_max_positions=1024)
    assert stretched.inv_freq == pytest.approx(table().inv_freq)
    assert stretched.scale == 1.0


def test_stored_divisors_say_the_same_as_the_llama3_rule() -> None:
    by_rule = table(kind="llama3", factor=8.0, original_max_positions=1024)
    divisors = tuple(p / f for p, f in zip(table().inv_freq, by_rule.inv_freq, strict=True))
    assert table(freq_factors=divisors).inv_freq == pytest.approx(by_rule.inv_freq)
