"""`headrace budgets`: how much a key, a tenant or everyone may spend, and how much is left.

Owns what the tables show; the work is the registry's. Amounts are typed and shown in dollars, kept in nano-dollars.
"""

from __future__ import annotations

import argparse

import msgspec
from rich.table import Table

from headrace.cli.accounts import day, journal_of, print_json, with_database
from headrace.cli.tables import print_table
from headrace.core.errors import ConfigError
from headrace.econ.money import parse_usd, show_usd
from headrace.gateway.budgets import BudgetRule
from headrace.gateway.budgets.registry import AccountState, BudgetRegistry
from headrace.gateway.store import Database


def run(args: argparse.Namespace) -> int:
    """Carry out one action and show the budgets it is about."""

    async def act(database: Database) -> list[tuple[BudgetRule, list[AccountState]]]:
        registry = BudgetRegistry(database, journal_of(args, database))
        match args.action:
            case "set":
                rules = [await _set(registry, args)]
            case "reset":
                rules = [await registry.reset(args.budget)]
            case "remove":
                return [(await registry.remove(args.budget), [])]
            case "show":
                rules = [await registry.rule(args.budget)]
            case _:
                rules = await registry.rules()
        return [(rule, await registry.accounts(rule.id)) for rule in rules]

    found = with_database(args, act)
    if args.json:
        shown = [{**msgspec.to_builtins(rule), "accounts": accounts} for rule, accounts in found]
        print_json(shown if args.action == "list" else shown[0])
        return 0
    if args.action == "show":
        _show_accounts(found[0][1])
    else:
        _show_rules(found)
    return 0


async def _set(registry: BudgetRegistry, args: argparse.Namespace) -> BudgetRule:
    return await registry.set(
        args.subject,
        _dollars(args.limit, "the limit"),
        period=args.period,
        model=args.only or "",
        is_hard=not args.soft_only,
        soft_nano=None if args.warn_at is None else _dollars(args.warn_at, "--warn-at"),
        timezone=args.timezone,
    )


def _dollars(text: str, what: str) -> int:
    try:
        return parse_usd(text)
    except ValueError as err:
        raise ConfigError(f"{what}: {err}") from err


def _show_rules(found: list[tuple[BudgetRule, list[AccountState]]]) -> None:
    table = Table(box=None)
    for column in ("budget", "subject", "model", "period", "limit $", "warn at $", "kind", "spent $", "reserved $"):
        table.add_column(column)
    for rule, accounts in found:
        latest = accounts[0] if accounts else None
        table.add_row(
            rule.id,
            rule.subject,
            rule.model or "any",
            rule.period if rule.timezone == "UTC" else f"{rule.period} ({rule.timezone})",
            show_usd(rule.limit_nano),
            "" if rule.soft_nano is None else show_usd(rule.soft_nano),
            "hard" if rule.is_hard else "soft",
            "" if latest is None else show_usd(latest.spent_nano),
            "" if latest is None else show_usd(latest.reserved_nano),
        )
    print_table(table)


def _show_accounts(accounts: list[AccountState]) -> None:
    table = Table(box=None)
    for column in ("account", "spent $", "reserved $", "last moved"):
        table.add_column(column)
    for state in accounts:
        table.add_row(state.account, show_usd(state.spent_nano), show_usd(state.reserved_nano), day(state.updated_s))
    print_table(table)
