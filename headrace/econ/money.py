"""Money as whole nano-dollars: parsed exactly, added exactly, rounded in one stated place.

Owns nothing; pure functions. A float never holds money: 0.1 + 0.2 dollars are 300,000,000 nano-dollars.
Rates are nano-dollars per million tokens or per hour, so that every published price is a whole number.
Rounding, where a rate meets a quantity: to the nearest, halves up.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import NewType

NanoUsd = NewType("NanoUsd", int)

NANO_PER_USD = 1_000_000_000
_NS_PER_HOUR = 3_600 * 1_000_000_000
_MAX_USD = 10**12


def parse_usd(text: str | int | Decimal) -> NanoUsd:
    """Return a decimal number of dollars as nano-dollars.

    Raises ValueError for what is no number, is negative, beyond 10^12 dollars, or finer than a nano-dollar.
    """
    try:
        usd = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"'{text}' is not an amount of dollars; write it like 12.50") from None
    if not usd.is_finite() or not 0 <= usd <= _MAX_USD:
        raise ValueError(f"{text} dollars are outside 0 to {_MAX_USD}")
    nano = usd * NANO_PER_USD
    if nano != int(nano):
        raise ValueError(f"{text} dollars are finer than a nano-dollar; nine decimals are kept")
    return NanoUsd(int(nano))


def show_usd(amount: int) -> str:
    """Write nano-dollars as dollars with all their decimals, trailing zeros beyond cents dropped."""
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), NANO_PER_USD)
    return f"{sign}{whole}.{f'{fraction:09d}'.rstrip('0'):0<2}"


def rounded(numerator: int, denominator: int) -> int:
    """Divide to the nearest whole number, halves up; numerator ≥ 0, denominator > 0."""
    return (2 * numerator + denominator) // (2 * denominator)


def cost_of_time(elapsed_ns: int, nano_per_hour: int) -> NanoUsd:
    """Return what `elapsed_ns` of a machine at `nano_per_hour` cost.

    Bill a span by the difference of two calls on one running total, then the spans add up to the bill exactly.
    """
    return NanoUsd(rounded(elapsed_ns * nano_per_hour, _NS_PER_HOUR))
