"""The price book: what many models' tokens cost, since when, from whose list; made by `headrace prices import`.

Owns the format. Amounts are dollars per million tokens, as decimal text, so nothing is rounded on the way.
Invariant: an entry that is not there is unknown, never free; a version is in force from `since` until the next one's.
Longer prompts may cost more: each tier holds for all tokens of a request whose prompt has more than `above` tokens.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from difflib import get_close_matches
from pathlib import Path

import msgspec

from headrace.core.errors import ConfigError
from headrace.econ.money import parse_usd
from headrace.gateway.budgets.price import TokenPrice

_FORMAT = 1
_MOST_BYTES = 64 << 20


class PriceTier(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Dollars per million tokens; what is not named costs as other input, or other output; an hour's
    writing as other writing."""

    above: int = 0
    input: str
    output: str
    cached: str | None = None
    cache_write: str | None = None
    cache_write_1h: str | None = None
    reasoning: str | None = None


class PriceVersion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Prices from a day on (UTC); `since` None: from the beginning. Tiers by rising `above`, the first 0."""

    since: date | None = None
    tiers: tuple[PriceTier, ...]


class PriceBook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Versions by `provider/model`, the oldest first."""

    format: int
    source: str
    imported: date
    models: dict[str, tuple[PriceVersion, ...]]

    def find(self, reference: str, what: str) -> tuple[PriceVersion, ...]:
        """Return the versions of an entry. Raises ConfigError naming `what` and the nearest entries."""
        versions = self.models.get(reference)
        if versions is None:
            near = get_close_matches(reference, self.models, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(f"{what} names '{reference}', which the price book ({self.source}) has not{hint}")
        return versions


def read_book(path: Path) -> PriceBook:
    """Read a price book. Raises ConfigError."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} has more than {_MOST_BYTES >> 20} MiB; that is no price book")
        book = msgspec.json.decode(path.read_bytes(), type=PriceBook)
    except OSError as err:
        raise ConfigError(f"price book {path}: {err.strerror}; make one with 'headrace prices import'") from err
    except msgspec.MsgspecError as err:
        raise ConfigError(f"{path} is no price book: {err}; make one with 'headrace prices import'") from err
    if book.format != _FORMAT:
        raise ConfigError(f"{path} has format {book.format}, this program reads {_FORMAT}; import the prices again")
    return book


def write_book(path: Path, source: str, models: dict[str, tuple[PriceVersion, ...]]) -> None:
    """Write a price book, sorted, in place of what was there."""
    book = PriceBook(
        format=_FORMAT, source=source, imported=datetime.now(UTC).date(), models=dict(sorted(models.items()))
    )
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(book), indent=1))
    draft.replace(path)


def token_price(version: PriceVersion, source: str) -> TokenPrice:
    """Return a version as exact prices. Raises ValueError for an amount that is none."""
    first, *longer = [_tier_price(tier, source) for tier in version.tiers]
    return replace(first, longer=tuple(zip((tier.above for tier in version.tiers[1:]), longer, strict=True)))


def _tier_price(tier: PriceTier, source: str) -> TokenPrice:
    return TokenPrice(
        input_uncached=parse_usd(tier.input),
        cache_read=parse_usd(tier.input if tier.cached is None else tier.cached),
        cache_write=parse_usd(tier.input if tier.cache_write is None else tier.cache_write),
        cache_write_1h=None if tier.cache_write_1h is None else parse_usd(tier.cache_write_1h),
        output_text=parse_usd(tier.output),
        output_reasoning=parse_usd(tier.output if tier.reasoning is None else tier.reasoning),
        source=source,
    )
