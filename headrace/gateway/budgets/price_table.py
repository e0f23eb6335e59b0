"""Prices from the configuration: dollars per million tokens, by the name of a model.

Owns the table. Written `INPUT/OUTPUT[/CACHED[/WRITTEN[/WRITTEN_1H]]]`, such as `0.10/0.40/0.01` or `3/15/0.30/3.75/6`.
Cached input and what is written to a cache cost as other input does unless they are named, for an hour as else.
`book:PROVIDER/MODEL` takes the price in force from the price book.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from headrace.core.errors import ConfigError
from headrace.econ.money import parse_usd
from headrace.gateway.budgets.price import TokenPrice
from headrace.gateway.budgets.price_book import PriceBook, token_price

_BOOK = "book:"


class PriceTable:
    """Implements `budgets.price.PriceOf`."""

    def __init__(
        self, prices: Mapping[str, str], book: PriceBook | None = None, wall_s: Callable[[], float] = time.time
    ) -> None:
        """Read the table. Raises ConfigError naming model and value."""
        self._wall_s = wall_s
        self._prices = {
            model: _from_book(model, text.removeprefix(_BOOK).strip(), book)
            if text.startswith(_BOOK)
            else [(0.0, _read(model, text))]
            for model, text in prices.items()
        }

    def __call__(self, model: str) -> TokenPrice | None:
        """Return the price of a model that is in force, or None."""
        versions = self._prices.get(model)
        if versions is None:
            return None
        if len(versions) == 1 and not versions[0][0]:
            return versions[0][1]
        now_s = self._wall_s()
        return next((price for since_s, price in reversed(versions) if since_s <= now_s), None)


def _from_book(model: str, reference: str, book: PriceBook | None) -> list[tuple[float, TokenPrice]]:
    """Return the entry's prices, each with the time since when it is in force, the oldest first."""
    what = f"gateway.prices.{model}"
    if book is None:
        raise ConfigError(f"{what} is 'book:{reference}', and gateway.price_book names no price book")
    versions: list[tuple[float, TokenPrice]] = []
    for version in book.find(reference, what):
        since = version.since
        since_s = 0.0 if since is None else datetime(since.year, since.month, since.day, tzinfo=UTC).timestamp()
        source = f"{book.source}, {reference}" + ("" if since is None else f" since {since}")
        try:
            versions.append((since_s, token_price(version, source)))
        except ValueError as err:
            raise ConfigError(f"{what}: the price book's '{reference}' is broken: {err}; import it again") from err
    return versions


def _read(model: str, text: str) -> TokenPrice:
    parts = text.split("/")
    try:
        if not 2 <= len(parts) <= 5:
            raise ValueError(f"it has {len(parts)} parts")
        amounts = [parse_usd(part.strip()) for part in parts]
    except ValueError as err:
        raise ConfigError(
            f"gateway.prices.{model} is '{text}': {err}; write dollars per million tokens as INPUT/OUTPUT, "
            "INPUT/OUTPUT/CACHED or INPUT/OUTPUT/CACHED/WRITTEN/WRITTEN_1H, such as 0.10/0.40/0.01",
            param="gateway.prices",
        ) from err
    return TokenPrice(
        input_uncached=amounts[0],
        cache_read=amounts[2] if len(amounts) > 2 else amounts[0],
        cache_write=amounts[3] if len(amounts) > 3 else amounts[0],
        cache_write_1h=amounts[4] if len(amounts) > 4 else None,
        output_text=amounts[1],
        output_reasoning=amounts[1],
        source="config",
    )
