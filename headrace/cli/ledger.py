"""`headrace ledger`: what was used, charged and paid for; the rows themselves; whether they add up.

Owns what the tables show; the numbers are `gateway.ledger.report`'s.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.table import Table

from headrace.cli.accounts import print_json, with_database
from headrace.cli.ledger_export import REFUSAL, open_export
from headrace.cli.periods import period
from headrace.cli.tables import print_table
from headrace.econ import show_usd
from headrace.gateway.admission.rows import SETTLEMENT
from headrace.gateway.ledger import (
    PoolLine,
    UsageLine,
    allocate,
    balances,
    pool,
    reasons,
    refusals,
    settlements,
    usage,
)
from headrace.gateway.store import Database


def run(args: argparse.Namespace) -> int:
    """Carry out one action."""
    match args.action:
        case "report":
            return _report(args)
        case "export":
            return _export(args)
        case _:
            return _verify(args)


def _report(args: argparse.Namespace) -> int:
    since, until = period(args)

    async def read(database: Database) -> tuple[list[UsageLine], PoolLine, dict[str, int]]:
        lines = await usage(database, args.by, since, until)
        return lines, await pool(database, since, until), await reasons(database, since, until)

    lines, rest, refused = with_database(args, read)
    if args.allocate == "usage":
        lines = allocate(lines, rest.pool_nano)
    if args.json:
        print_json({"by": args.by, "lines": [_told(line) for line in lines], "pool": _told(rest), "refused": refused})
        return 0
    _show(lines, rest, args)
    if refused:
        by_reason = ", ".join(f"{reason} {num:,}" for reason, num in refused.items())
        print(f"refused before anything was computed: {sum(refused.values()):,} calls ({by_reason})")
    return 0


def _told(line: UsageLine | PoolLine) -> dict[str, object]:
    """Return a line for programs: an amount of which nothing is known is null, not 0."""
    fields = line._asdict()
    unknown: tuple[str, ...]
    if isinstance(line, UsageLine):
        unknown = ("machine_nano", "rent_nano") if line.unrated and not line.machine_nano else ()
    else:
        unknown = ("pool_nano",) if line.unrated_ns and not line.pool_nano else ()
    return {**fields, **dict.fromkeys(unknown)}


def _machine_usd(nano: int, unrated: int) -> str:
    """Return a machine's cost in dollars, and of how many requests it is not known."""
    if not unrated:
        return show_usd(nano)
    return f"{show_usd(nano)} + {unrated:,} unknown" if nano else "unknown"


def _show(lines: list[UsageLine], rest: PoolLine, args: argparse.Namespace) -> None:
    is_allocated = args.allocate == "usage"
    is_reported = any(line.reported for line in lines)
    table = Table(box=None)
    table.add_column(args.by)
    for column in (
        "requests",
        "refused",
        "input",
        "cached",
        "output",
        "engine s",
        "machine $",
        "of it rent $",
        "charged $",
    ):
        table.add_column(column, justify="right")
    if is_reported:
        table.add_column("reported $", justify="right")
    if is_allocated:
        table.add_column("with pool $", justify="right")
    for line in lines:
        cells = [
            f"{line.requests:,}",
            f"{line.refused:,}",
            f"{line.input_uncached + line.cache_write + line.cache_write_1h:,}",
            f"{line.cache_read:,}",
            f"{line.output_text + line.output_reasoning:,}",
            f"{line.engine_ns / 1e9:,.3f}",
            _machine_usd(line.machine_nano, line.unrated),
            _machine_usd(line.rent_nano, line.unrated),
            show_usd(line.charged_nano) + (f" + {line.unpriced:,} unpriced" if line.unpriced else ""),
        ]
        if is_reported:
            cells.append(show_usd(line.reported_nano) if line.reported else "")
        if is_allocated:
            cells.append(_machine_usd(line.machine_nano + line.pool_nano, line.unrated))
        table.add_row(line.group or "(none)", *cells)
    print_table(table)
    used_ns = sum(line.engine_ns for line in lines)
    print(
        f"pool: loading {rest.loading_ns / 1e9:,.3f} s, idle {rest.idle_ns / 1e9:,.3f} s, "
        f"recomputed {rest.recomputed_ns / 1e9:,.3f} s, abandoned {rest.abandoned_ns / 1e9:,.3f} s, "
        f"cached and not paid for {rest.cached_ns / 1e9:,.3f} s"
        f"{_pool_usd(rest)}; charged to requests: {used_ns / 1e9:,.3f} s"
        + ("; the pool is allocated by engine time" if is_allocated else "")
    )
    if rest.unrated_ns:
        print(
            f"{rest.unrated_ns / 1e9:,.3f} s of engines are in no amount: what their machine costs was not known; "
            "set gateway.usd_per_hour"
        )
    if is_reported:
        _compare(lines)


def _pool_usd(rest: PoolLine) -> str:
    return "" if rest.unrated_ns and not rest.pool_nano else f" = ${show_usd(rest.pool_nano)}"


def _compare(lines: list[UsageLine]) -> None:
    """Say what upstreams reported, and what the price says of the same requests."""
    num, reported_nano = sum(line.reported for line in lines), sum(line.reported_nano for line in lines)
    compared_nano, priced_nano = sum(line.compared_nano for line in lines), sum(line.priced_nano for line in lines)
    text = f"upstreams report ${show_usd(reported_nano)} for {num:,} requests"
    if compared_nano or priced_nano:
        apart = f" ({compared_nano / priced_nano - 1:+.1%})" if priced_nano else ""
        text += f"; where the price is known ${show_usd(compared_nano)}{apart}, by the price ${show_usd(priced_nano)}"
    print(text)


def _export(args: argparse.Namespace) -> int:
    since, until = period(args)
    path = Path(args.file)

    async def write(database: Database) -> int:
        num_rows = 0
        columns, pages = (SETTLEMENT, settlements) if args.rows == "requests" else (REFUSAL, refusals)
        with open_export(path, args.format, columns) as sink:
            async for page in pages(database, since, until):
                sink.write(page)
                num_rows += len(page)
        return num_rows

    what = "settled requests" if args.rows == "requests" else "rows of refused calls"
    print(f"{with_database(args, write):,} {what} written to {path}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    """Say of every engine's life whether its parts are its whole, and of its bill whether it is that time's cost."""
    found = with_database(args, balances)
    wrong = [each for each in found if each.is_wrong]
    if args.json:
        print_json({"engines": [each._asdict() for each in found], "is_right": not wrong})
        return 1 if wrong else 0
    for each in wrong:
        print(
            f"{each.engine} ({each.model}): {each.unexplained_ns:,} ns belong to nobody, "
            f"{max(0, -each.unsettled_ns):,} ns are settled twice, ${show_usd(each.unbilled_nano)} are not in the bill",
            file=sys.stderr,
        )
    billed = [each.bill_nano for each in found if each.bill_nano is not None]
    unbilled = len(found) - len(billed)
    bill = f"and their bill of ${show_usd(sum(billed))} to the nano-dollar" if billed else "and have no bill"
    if unbilled:
        bill += f" ({unbilled} on machines of unknown cost: set gateway.usd_per_hour)"
    print(
        f"{len(found) - len(wrong)} of {len(found)} engines' lives add up to the nanosecond, {bill}; "
        f"{sum(each.unsettled_ns for each in found):,} ns of requests are not settled yet"
    )
    return 1 if wrong else 0
