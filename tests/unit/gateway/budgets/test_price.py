"""Prices: exact, and never an estimate below the cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import ConfigError
from headrace.gateway.budgets import TokenCounts, TokenPrice
from headrace.gateway.budgets.price_table import PriceTable

counts = st.integers(0, 10**7)
rates = st.integers(0, 10**12)
prices = st.builds(
    TokenPrice, input_uncached=rates, cache_read=rates, cache_write=rates, output_text=rates,
    output_reasoning=rates, source=st.just("test"), cache_write_1h=st.none() | rates,
)  # fmt: skip
tokens = st.builds(
    TokenCounts, input_uncached=counts, cache_read=counts, cache_write=counts, output_text=counts,
    output_reasoning=counts, cache_write_1h=counts,
)  # fmt: skip


@given(prices, tokens)
def test_what_is_set_aside_is_never_less_than_the_cost(price: TokenPrice, used: TokenCounts) -> None:
    assert price.cost_nano(used) <= price.most_nano(used.num_input, used.num_output)


@given(prices, counts, st.integers(0, 10**15))
def test_what_money_pays_for_fits_and_one_token_more_does_not(price: TokenPrice, num_input: int, nano: int) -> None:
    num_output = price.affordable_output(num_input, nano)
    if num_output is None:
        assert price.most_nano(num_input, 10**9) <= nano
    elif num_output < 0:
        assert price.most_nano(num_input, 0) > nano
    else:
        assert price.most_nano(num_input, num_output) <= nano < price.most_nano(num_input, num_output + 1)


def test_prices_are_read_from_the_configuration_exactly() -> None:
    price = PriceTable({"m": "0.0375/0.15/0.01"})("m")
    assert price is not None
    assert (price.input_uncached, price.output_text, price.cache_read) == (37_500_000, 150_000_000, 10_000_000)
    used = TokenCounts(input_uncached=1_000, cache_read=3_000, output_text=100)
    assert price.cost_nano(used) == 37_500 + 30_000 + 15_000
    cheap = PriceTable({"m": "1/2"})("m")
    assert cheap is not None
    assert cheap.cache_read == cheap.input_uncached
    assert PriceTable({})("m") is None


@pytest.mark.parametrize("text", ["", "1", "1/2/3/4/5/6", "a/b", "-1/2", "0.0000000001/1"])
def test_a_price_that_does_not_fit_names_model_and_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"gateway.prices.m is .*INPUT/OUTPUT"):
        PriceTable({"m": text})


@given(prices, tokens)
def test_the_parts_of_a_cost_are_the_cost(price: TokenPrice, used: TokenCounts) -> None:
    parts = price.parts_nano(used)
    assert sum(parts) == price.cost_nano(used)
    assert min(parts) >= 0
