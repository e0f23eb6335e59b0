"""Price books: imported without rounding, in force by date, dearer for long prompts, unknown rather than free."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from headrace.core.errors import ConfigError
from headrace.gateway.budgets.price import TokenCounts
from headrace.gateway.budgets.price_book import PriceBook, PriceTier, PriceVersion, read_book, write_book
from headrace.gateway.budgets.price_import import from_genai_prices, from_litellm
from headrace.gateway.budgets.price_table import PriceTable

LITELLM = """{
  "sample_spec": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0},
  "tiny": {"litellm_provider": "acme", "input_cost_per_token": 3.75e-08, "output_cost_per_token": 1.5e-07},
  "acme/long": {"litellm_provider": "acme", "input_cost_per_token": 1.25e-06, "output_cost_per_token": 1e-05,
    "input_cost_per_token_above_200k_tokens": 2.5e-06, "output_cost_per_token_above_200k_tokens": 1.5e-05,
    "cache_read_input_token_cost": 3.1e-07, "cache_creation_input_token_cost": 1.5e-06,
    "cache_creation_input_token_cost_above_1hr": 2.4e-06},
  "speech": {"litellm_provider": "acme", "input_cost_per_second": 0.0001},
  "negative": {"input_cost_per_token": -1, "output_cost_per_token": 1}
}"""


@pytest.fixture
def litellm(tmp_path: Path) -> Path:
    path = tmp_path / "map.json"
    path.write_text(LITELLM)
    return path


def test_litellms_map_is_read_to_the_last_decimal(litellm: Path) -> None:
    found = from_litellm(litellm)
    assert sorted(found.models) == ["acme/long", "acme/tiny"]
    assert found.num_left_out == 3
    (tier,) = found.models["acme/tiny"][0].tiers
    assert [float(tier.input), float(tier.output)] == [0.0375, 0.15]
    price = PriceTable({"m": "book:acme/tiny"}, _book(found.models))("m")
    assert price is not None
    assert price.cost_nano(TokenCounts(input_uncached=1_000_000, output_text=1)) == 37_500_000 + 150


def test_long_prompts_cost_what_their_tier_says(litellm: Path) -> None:
    price = PriceTable({"m": "book:acme/long"}, _book(from_litellm(litellm).models))("m")
    assert price is not None
    assert price.cost_nano(TokenCounts(input_uncached=200_000, output_text=1000)) == 260_000_000
    assert price.cost_nano(TokenCounts(input_uncached=200_001, output_text=1000)) == 515_002_500
    assert price.cost_nano(TokenCounts(cache_read=100_000)) == 31_000_000
    assert price.cost_nano(TokenCounts(cache_write=1000, cache_write_1h=1000)) == 1_500_000 + 2_400_000
    assert price.most_nano(1, 1) >= price.cost_nano(TokenCounts(input_uncached=1, output_text=1))


def test_a_price_is_in_force_from_its_day_until_the_next() -> None:
    book = _book(
        {
            "a/b": (
                PriceVersion(since=date(2026, 1, 1), tiers=(PriceTier(input="1", output="2"),)),
                PriceVersion(since=date(2026, 7, 1), tiers=(PriceTier(input="3", output="4"),)),
            )
        }
    )
    now = {"s": 0.0}
    table = PriceTable({"m": "book:a/b"}, book, lambda: now["s"])

    def input_price(*day: int) -> int | None:
        now["s"] = datetime(*day, tzinfo=UTC).timestamp()  # type: ignore[misc]
        price = table("m")
        return None if price is None else price.input_uncached // 10**9

    assert input_price(2025, 12, 31, 23, 59) is None
    assert input_price(2026, 1, 1) == 1
    assert input_price(2026, 6, 30, 23, 59) == 1
    assert input_price(2026, 7, 1) == 3
    last = table("m")
    assert last is not None
    assert last.source == "test, a/b since 2026-07-01"


def test_a_book_is_read_as_it_was_written(tmp_path: Path, litellm: Path) -> None:
    found = from_litellm(litellm)
    write_book(tmp_path / "book.json", found.source, found.models)
    assert read_book(tmp_path / "book.json").models == found.models


def test_genai_prices_data_gives_dated_versions_of_many_models() -> None:
    found = from_genai_prices()
    assert len(found.models) > 1000
    assert any(version.since for versions in found.models.values() for version in versions)
    table = PriceTable({name: f"book:{name}" for name in found.models}, _book(found.models))
    assert table("openai/gpt-4o") is not None


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ({"m": "book:acme/tiy"}, "did you mean acme/tiny"),
        ({"m": "book:x"}, "which the price book"),
    ],
)
def test_an_entry_that_is_not_there_is_refused_with_the_nearest(
    litellm: Path, prices: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        PriceTable(prices, _book(from_litellm(litellm).models))


def test_without_a_book_none_can_be_named() -> None:
    with pytest.raises(ConfigError, match="price_book names no price book"):
        PriceTable({"m": "book:a/b"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no price book"),
        (json.dumps({"format": 9, "source": "", "imported": "2026-01-01", "models": {}}), "format 9"),
    ],
)
def test_a_file_that_is_no_book_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "book.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_book(path)
    with pytest.raises(ConfigError, match="headrace prices import"):
        read_book(tmp_path / "none.json")


def _book(models: dict[str, tuple[PriceVersion, ...]]) -> PriceBook:
    return PriceBook(format=1, source="test", imported=date(2026, 1, 1), models=models)


def test_anthropics_hour_costs_twice_the_input_and_a_price_can_be_configured() -> None:
    found = from_genai_prices().models
    versions = [tier for name, each in found.items() if name.startswith("anthropic/") for v in each for tier in v.tiers]
    hours = [tier for tier in versions if tier.cache_write is not None]
    assert hours
    assert all(float(tier.cache_write_1h or 0) == 2 * float(tier.input) for tier in hours)
    price = PriceTable({"m": "3/15/0.30/3.75/6"})("m")
    assert price is not None
    assert price.cost_nano(TokenCounts(cache_read=10, cache_write=10, cache_write_1h=10)) == 3_000 + 37_500 + 60_000
    without = PriceTable({"m": "3/15/0.30/3.75"})("m")
    assert without is not None
    assert without.cost_nano(TokenCounts(cache_write_1h=10)) == 37_500
