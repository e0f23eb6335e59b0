"""Prices from the configuration: dollars per million tokens, by the name of a model.

Owns the table. Written `INPUT/OUTPUT` or `INPUT/OUTPUT/CACHED`, such as `0.10/0.40/0.01`. Cached input costs as much as
other input unless it is named; writing a cache costs what input costs.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.core.errors import ConfigError
from headrace.econ.money import parse_usd
from headrace.gateway.budgets.price import TokenPrice


class PriceTable:
    """Implements `budgets.price.PriceOf`."""

    def __init__(self, prices: Mapping[str, str]) -> None:
        """Read the table. Raises ConfigError naming model and value."""
        self._prices = {model: _read(model, text) for model, text in prices.items()}

    def __call__(self, model: str) -> TokenPrice | None:
        """Return the price of a model, or None."""
        return self._prices.get(model)


def _read(model: str, text: str) -> TokenPrice:
    parts = text.split("/")
    try:
        if len(parts) not in (2, 3):
            raise ValueError(f"it has {len(parts)} parts")
        amounts = [parse_usd(part.strip()) for part in parts]
    except ValueError as err:
        raise ConfigError(
            f"gateway.prices.{model} is '{text}': {err}; write dollars per million tokens as INPUT/OUTPUT or "
            "INPUT/OUTPUT/CACHED, such as 0.10/0.40/0.01",
            param="gateway.prices",
        ) from err
    return TokenPrice(
        input_uncached=amounts[0],
        cache_read=amounts[2] if len(amounts) == 3 else amounts[0],
        cache_write=amounts[0],
        output_text=amounts[1],
        output_reasoning=amounts[1],
        source="config",
    )
