"""Dollars in, nano-dollars kept, dollars out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.econ import NANO_PER_USD, cost_of_time, parse_usd, show_usd


@pytest.mark.parametrize(
    ("text", "nano"),
    [("0", 0), ("0.10", 100_000_000), ("12.5", 12_500_000_000), ("0.000000001", 1), ("1e-9", 1), (3, 3 * NANO_PER_USD)],
)
def test_dollars_are_parsed_exactly(text: str | int, nano: int) -> None:
    assert parse_usd(text) == nano


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ten", "'ten' is not an amount"),
        ("-1", "outside 0"),
        ("nan", "outside 0"),
        ("inf", "outside 0"),
        ("0.0000000001", "finer than a nano-dollar"),
    ],
)
def test_what_is_no_amount_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_usd(text)


@given(st.integers(0, 10**18))
def test_what_is_shown_can_be_parsed_again(amount: int) -> None:
    assert parse_usd(show_usd(amount)) == amount


def test_a_negative_correction_is_shown_with_its_sign() -> None:
    assert show_usd(-1_500_000_000) == "-1.50"


def test_an_hour_costs_its_rate() -> None:
    assert cost_of_time(3_600 * 10**9, parse_usd("2.95")) == parse_usd("2.95")


@given(st.lists(st.integers(0, 10**12), max_size=50), st.integers(0, 100 * NANO_PER_USD))
def test_spans_billed_by_differences_of_a_running_total_add_up_to_the_bill(spans: list[int], rate: int) -> None:
    total, bill = 0, 0
    for span in spans:
        bill += cost_of_time(total + span, rate) - cost_of_time(total, rate)
        total += span
    assert bill == cost_of_time(total, rate)
