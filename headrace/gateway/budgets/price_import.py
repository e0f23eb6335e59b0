"""Price lists of others, read into a price book: genai-prices' data and LiteLLM's map.

Owns nothing; pure but for reading. Entries without a price per token, and those with amounts that are none, are left
out and counted. LiteLLM's map has no dates: its prices hold from the beginning.
Source: Anthropic's documentation of prompt caching; fields of `genai_prices.types.ModelPrice`;
`model_prices_and_context_window.json` (tiers are in field names).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import msgspec

from headrace.core.errors import ConfigError
from headrace.econ.money import parse_usd
from headrace.gateway.budgets.price_book import PriceTier, PriceVersion

_MTOK = 10**6
_ABOVE = re.compile(r"_above_(\d+)k_tokens$")


class Imported(NamedTuple):
    """What was found, whose it is, and how many entries were left out."""

    source: str
    models: dict[str, tuple[PriceVersion, ...]]
    num_left_out: int


def from_genai_prices() -> Imported:
    """Read the data of the installed genai-prices package. Raises ConfigError where it is not installed."""
    try:
        import genai_prices
        from genai_prices.data import providers
    except ImportError as err:
        raise ConfigError("genai-prices is not installed: pip install 'headrace[prices]'") from err
    models: dict[str, tuple[PriceVersion, ...]] = {}
    num_left_out = 0
    for provider in providers:
        for model in provider.models:
            entries = model.prices if isinstance(model.prices, list) else [model.prices]
            versions = _versions(entries)
            if provider.id == "anthropic":
                versions = tuple(map(_with_hour_writes, versions))
            if versions:
                models[f"{provider.id}/{model.id}"] = versions
            else:
                num_left_out += 1
    return Imported(f"genai-prices {genai_prices.__version__}", models, num_left_out)


def _versions(entries: Iterable[object]) -> tuple[PriceVersion, ...]:
    """Return the dated versions of one model; none if any of them is not per token, or holds for hours of the day."""
    versions: list[PriceVersion] = []
    for entry in entries:
        constraint = getattr(entry, "constraint", None)
        since = getattr(constraint, "start_date", None)
        if constraint is not None and since is None:
            return ()
        tiers = _tiers(getattr(entry, "prices", entry))
        if not tiers:
            return ()
        versions.append(PriceVersion(since=since, tiers=tiers))
    return tuple(sorted(versions, key=lambda version: (version.since is not None, str(version.since))))


def _with_hour_writes(version: PriceVersion) -> PriceVersion:
    """Add what the data leaves out: Anthropic asks twice the price of input for what is kept for an hour."""
    tiers = tuple(
        msgspec.structs.replace(tier, cache_write_1h=format(2 * Decimal(tier.input), "f"))
        if tier.cache_write is not None and tier.cache_write_1h is None
        else tier
        for tier in version.tiers
    )
    return msgspec.structs.replace(version, tiers=tiers)


def _tiers(prices: object) -> tuple[PriceTier, ...]:
    fields = {
        "input": "input_mtok",
        "output": "output_mtok",
        "cached": "cache_read_mtok",
        "cache_write": "cache_write_mtok",
        "reasoning": "output_reasoning_mtok",
    }
    found = {ours: getattr(prices, theirs, None) for ours, theirs in fields.items()}
    starts = {0} | {tier.start for value in found.values() for tier in getattr(value, "tiers", ())}
    return _ordered(
        {start: {ours: _at(value, start) for ours, value in found.items()} for start in starts},
    )


def _at(value: object, start: int) -> Decimal | None:
    """Return a price per million tokens for prompts of more than `start` tokens."""
    if value is None or isinstance(value, Decimal):
        return value
    amount: Decimal = getattr(value, "base", Decimal(0))
    for tier in getattr(value, "tiers", ()):
        if tier.start <= start:
            amount = tier.price
    return amount


def from_litellm(path: Path) -> Imported:
    """Read LiteLLM's map from a file. Raises ConfigError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}") from err
    except ValueError as err:
        raise ConfigError(f"{path} is not JSON: {err}") from err
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is no map of models; it should be model_prices_and_context_window.json")
    models: dict[str, tuple[PriceVersion, ...]] = {}
    num_left_out = 0
    for name, entry in document.items():
        tiers = _litellm_tiers(entry) if isinstance(entry, dict) and name != "sample_spec" else ()
        if tiers:
            provider = str(entry.get("litellm_provider", ""))
            models[name if "/" in name or not provider else f"{provider}/{name}"] = (PriceVersion(tiers=tiers),)
        else:
            num_left_out += 1
    return Imported(f"LiteLLM map {path.name}", models, num_left_out)


def _litellm_tiers(entry: Mapping[str, object]) -> tuple[PriceTier, ...]:
    fields = {
        "input": "input_cost_per_token",
        "output": "output_cost_per_token",
        "cached": "cache_read_input_token_cost",
        "cache_write": "cache_creation_input_token_cost",
        "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
        "reasoning": "output_cost_per_reasoning_token",
    }
    starts = {0} | {
        int(hit[1]) * 1000
        for key in entry
        if (hit := _ABOVE.search(key)) and key.split("_above_")[0] in fields.values()
    }
    by_start: dict[int, dict[str, Decimal | None]] = {}
    for start in starts:
        suffix = f"_above_{start // 1000}k_tokens" if start else ""
        found = {ours: entry.get(theirs + suffix, entry.get(theirs)) for ours, theirs in fields.items()}
        by_start[start] = {ours: _per_mtok(value) for ours, value in found.items()}
    return _ordered(by_start)


def _per_mtok(value: object) -> Decimal | None:
    return Decimal(value) * _MTOK if isinstance(value, int | Decimal) else None


def _ordered(by_start: Mapping[int, Mapping[str, Decimal | None]]) -> tuple[PriceTier, ...]:
    """Return tiers by rising start; none if one lacks a price of input or output, or has an amount that is none."""
    tiers: list[PriceTier] = []
    for start in sorted(by_start):
        amounts = {name: None if value is None else format(value, "f") for name, value in by_start[start].items()}
        if amounts["input"] is None or amounts["output"] is None:
            return ()
        try:
            for amount in amounts.values():
                if amount is not None:
                    parse_usd(amount)
        except ValueError:
            return ()
        tiers.append(
            PriceTier(
                above=start,
                input=amounts["input"],
                output=amounts["output"],
                cached=amounts["cached"],
                cache_write=amounts["cache_write"],
                cache_write_1h=amounts.get("cache_write_1h"),
                reasoning=amounts["reasoning"],
            )
        )
    return tuple(tiers)
