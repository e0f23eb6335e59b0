"""Break-even against published tables, and what an audit makes of a price."""

from __future__ import annotations

import pytest

from headrace.econ.stack import ReferencePrice, audit
from headrace.econ.stack.break_even import HOURS_PER_MONTH, break_even_tokens, sensitivity, usd_per_mtok
from tests.stack_ledgers import ledger, request, span

# Dollars per million tokens of a machine for $2,000 a month, by tokens per second and utilization.
_SENSITIVITY = {
    1000: (0.76, 0.95, 1.27, 1.90, 3.81, 5.07),
    2000: (0.38, 0.48, 0.63, 0.95, 1.90, 2.54),
    3000: (0.25, 0.32, 0.42, 0.63, 1.27, 1.69),
    5000: (0.15, 0.19, 0.25, 0.38, 0.76, 1.01),
}
# Tokens a month and per second from which $2,000 a month are cheaper than a price per million.
_BREAK_EVEN = {
    0.10: (20.0e9, 7610),
    0.30: (6.67e9, 2537),
    0.60: (3.33e9, 1268),
    0.88: (2.27e9, 865),
    3.0: (667e6, 254),
    10.0: (200e6, 76),
}


@pytest.mark.parametrize("tokens_per_s", _SENSITIVITY)
def test_the_price_of_a_token_goes_with_one_over_utilization(tokens_per_s: int) -> None:
    levels = (1.0, 0.8, 0.6, 0.4, 0.2, 0.15)
    found = [usd_per_mtok(2000 / HOURS_PER_MONTH, tokens_per_s, level) for level in levels]
    assert found == pytest.approx(_SENSITIVITY[tokens_per_s], abs=0.0051)


@pytest.mark.parametrize("price", _BREAK_EVEN)
def test_a_fixed_bill_is_cheaper_from_a_volume_on(price: float) -> None:
    tokens = break_even_tokens(2000, price)
    volume, per_s = _BREAK_EVEN[price]
    assert tokens == pytest.approx(volume, rel=0.003)
    assert tokens / (HOURS_PER_MONTH * 3600) == pytest.approx(per_s, rel=0.003)


def test_a_machine_at_the_break_even_utilization_costs_what_the_price_asks() -> None:
    """100 ns at a nano-dollar each, a quarter of them busy; elsewhere the tokens cost 50: twice as busy is even."""
    rows = [request(engine_ns=25, machine_nano=25, input_uncached=30, cache_read=10, output_text=10)]
    price = ReferencePrice("there", fresh=10**6, cached=0, output=2 * 10**6)
    found = audit(ledger(rows), [price])
    (against,) = found.comparisons
    assert (against.here_nano, against.elsewhere_nano) == (100, 50)
    assert (against.utilization_now, against.utilization) == (0.25, 0.5)
    assert against.busy_tokens_per_s == pytest.approx(2e9)
    at_half = usd_per_mtok(3600.0, against.busy_tokens_per_s, 0.5)
    assert at_half == pytest.approx(50 / 50 / 1e3)
    assert against.tokens_per_s == pytest.approx(against.busy_tokens_per_s * 0.5)
    assert dict(sensitivity(found.lines[0], found.provisions[0]))[1.0] == pytest.approx(at_half / 2)


def test_nothing_is_compared_without_tokens_a_rate_or_a_price() -> None:
    price = ReferencePrice("there", 10**6, 10**6, 10**6)
    free = ReferencePrice("free", 0, 0, 0)
    rows = [request(engine_ns=25, machine_nano=25)]
    assert audit(ledger(rows), [free]).comparisons == []
    assert audit(ledger([], [span()]), [price]).comparisons == []
    unknown = [span(requests_ns=25, nano_per_hour=None, pool_nano=None)]
    found = audit(ledger([request(engine_ns=25, machine_nano=None)], unknown), [price])
    assert found.comparisons == []
    assert any("gateway.usd_per_hour" in caveat for caveat in found.caveats)
