"""`headrace prices`: make a price book from a public list, and look into it.

Owns what is printed; reading and writing are `gateway.budgets`'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from rich.table import Table

from headrace.cli.accounts import print_json
from headrace.cli.tables import print_table
from headrace.core.errors import ConfigError
from headrace.gateway.budgets.price_book import PriceVersion, read_book, write_book
from headrace.gateway.budgets.price_import import from_genai_prices, from_litellm


def run(args: argparse.Namespace) -> int:
    """Carry out one action."""
    return _import(args) if args.action == "import" else _show(args)


def _import(args: argparse.Namespace) -> int:
    found = from_genai_prices() if args.source == "genai-prices" else from_litellm(Path(args.source))
    if not found.models:
        raise ConfigError(f"{args.source} has no price per token of any model; nothing was written")
    write_book(Path(args.file), found.source, found.models)
    print(f"{len(found.models):,} models from {found.source} written to {args.file}; {found.num_left_out:,} left out")
    return 0


def _show(args: argparse.Namespace) -> int:
    book = read_book(Path(args.file))
    models = {args.model: book.find(args.model, "MODEL")} if args.model else book.models
    if args.json:
        print_json({name: msgspec.to_builtins(versions) for name, versions in models.items()})
        return 0
    table = Table(box=None, caption=f"{book.source}, imported {book.imported}; dollars per million tokens")
    table.add_column("model")
    for column in ("since", "above", "input", "cached", "cache write", "output"):
        table.add_column(column, justify="right")
    for name, versions in models.items():
        for version in versions:
            _add(table, name, version)
    print_table(table)
    return 0


def _add(table: Table, name: str, version: PriceVersion) -> None:
    since = "" if version.since is None else version.since.isoformat()
    for tier in version.tiers:
        above = f"{tier.above:,}" if tier.above else ""
        table.add_row(name, since, above, tier.input, tier.cached or "", tier.cache_write or "", tier.output)
