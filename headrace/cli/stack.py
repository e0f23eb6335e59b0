"""`headrace audit stack`: the bill of materials of what was served, from the ledger.

Owns what is read and where the findings go: text, a page, or JSON. The findings are `econ.stack`'s, the words
`cli.stack_words`'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table as TextTable

from headrace.bench.report import Table
from headrace.cli.accounts import print_json, with_database
from headrace.cli.configured import settings_from
from headrace.cli.periods import period
from headrace.cli.stack_page import stack_page
from headrace.cli.stack_words import SHOWN, Words
from headrace.cli.tables import print_table
from headrace.core.errors import ConfigError
from headrace.core.settings import Settings
from headrace.econ.stack import Ledger, ReferencePrice, StackAudit, StepFit, audit
from headrace.econ.stack.bill import per_mtok
from headrace.econ.stack.savings import usd
from headrace.gateway.budgets.price_book import read_book
from headrace.gateway.budgets.price_table import PriceTable
from headrace.gateway.ledger.stack_rows import read_ledger
from headrace.gateway.store import Database
from headrace.sim.step_times import read_step_times


def run(args: argparse.Namespace) -> int:
    """Read, judge, show."""
    since_ns, until_ns = period(args)
    against = _prices(settings_from(args), args.against or [])
    fits = None if args.fits is None else (_fit(args.fits[0]), _fit(args.fits[1]))

    async def read(database: Database) -> Ledger:
        return await read_ledger(database, since_ns, until_ns, args.tenant, args.only)

    found = audit(with_database(args, read), against, fits, is_part=args.tenant is not None)
    words = Words(found)
    if args.html is not None:
        _write(args.html, stack_page(words))
    if args.json:
        print_json(_document(words))
    else:
        _show(words)
        if args.html is not None:
            print(f"page written to {args.html}")
    return 0


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as err:
        raise ConfigError(
            f"--html {path} cannot be written: {err.strerror}; name a file in a directory of yours"
        ) from err


def _prices(settings: Settings, wanted: list[str]) -> list[ReferencePrice]:
    """Read prices to compare with: IN/OUT, IN/OUT/CACHED, book:PROVIDER/MODEL, or a model of gateway.prices."""
    path = settings.gateway.price_book
    book = None if path is None else read_book(Path(path).expanduser())
    found = []
    for text in wanted:
        known = settings.gateway.prices.get(text)
        if known is None and "/" not in text:
            names = ", ".join(f"'{name}'" for name in settings.gateway.prices) or "no model"
            raise ConfigError(
                f"--against '{text}' is no price; write INPUT/OUTPUT in dollars per million tokens, such as 0.10/0.40, "
                f"book:PROVIDER/MODEL, or a model of gateway.prices, which has {names}"
            )
        price = PriceTable({text: known or text}, book)(text)
        if price is not None:
            name = text if known is not None or text.startswith("book:") else f"${text} per million"
            found.append(ReferencePrice(name, price.input_uncached, price.cache_read, price.output_text))
    return found


def _fit(name: str) -> StepFit:
    times = read_step_times(name)
    return StepFit(
        shared=times.shared,
        per_row=times.per_row,
        per_read=times.per_read,
        per_token=times.per_token,
        per_pair=times.per_pair,
        source=times.source or name,
    )


def _document(words: Words) -> dict[str, object]:
    """Return the audit for machines: what was found, and what is derived from it."""
    found = words.found
    lines = []
    for line in found.lines:
        rates = {
            "input": per_mtok(line.fresh_nano, line.fresh_tokens),
            "cached": per_mtok(line.cached_nano, line.cached_tokens),
            "output": per_mtok(line.output_nano, line.output_tokens),
            "in_use": per_mtok(line.used_nano, line.tokens),
            "with_idle": per_mtok(line.total_nano, line.tokens),
        }
        sums = {"used_nano": line.used_nano, "pool_nano": line.pool_nano, "total_nano": line.total_nano}
        name = words.names[line.configuration]
        lines.append({**msgspec.to_builtins(line), **sums, "name": name, "usd_per_mtok": rates})
    provisions = [
        {**msgspec.to_builtins(own), "utilization": own.utilization, "name": words.names[own.configuration]}
        for own in found.provisions
    ]
    return {**msgspec.to_builtins(found), "lines": lines, "provisions": provisions}


def _show(words: Words) -> None:
    console = Console(width=None, soft_wrap=True, highlight=False, markup=False)
    for sentence in words.headline():
        console.print(sentence)
    for table in (
        words.configurations(),
        words.costs(),
        words.provisions(),
        words.times(),
        words.comparisons(),
        words.latencies(),
        words.traffic(),
        words.tenants(),
    ):
        if table.rows:
            _print(console, table)
    _improvements(console, words.found)


def _print(console: Console, table: Table) -> None:
    console.print(f"\n{table.title}")
    text = TextTable(box=None)
    for place, column in enumerate(table.columns):
        text.add_column(column, justify="left" if place == 0 or len(table.columns) == 2 else "right")
    for row in table.rows:
        text.add_row(*row)
    print_table(text)
    if table.note:
        console.print(table.note)


def _improvements(console: Console, found: StackAudit) -> None:
    console.print(
        "\nCheapest improvements" if found.improvements else "\nNo improvement has evidence in these records."
    )
    for number, each in enumerate(found.improvements[:SHOWN], 1):
        worth = "a day less to pay" if each.is_cash else "a day of engine time freed"
        console.print(f"{number}. {each.title}: {usd(each.nano_per_day)} {worth}, about {each.effort_h:g} h of work")
        console.print(f"   do: {each.do}")
        console.print(f"   evidence: {each.evidence}")
        console.print(f"   formula: {each.formula}")
        console.print(f"   wrong if: {each.wrong_if}")
    if found.improvements:
        console.print(
            "Savings overlap and do not add up. Freed engine time is money only when a smaller machine or other work "
            "follows."
        )
    for lacking in found.not_judged:
        console.print(f"not judged: {lacking.title}: {lacking.lacks}")
    for caveat in found.caveats:
        console.print(f"note: {caveat}")
