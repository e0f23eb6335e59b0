"""`headrace limits`: how often a key, a tenant or everyone may ask."""

from __future__ import annotations

import argparse

from rich.table import Table

from headrace.cli.accounts import journal_of, print_json, with_database
from headrace.cli.tables import print_table
from headrace.gateway.limits import LimitRule, What
from headrace.gateway.limits.registry import LimitRegistry
from headrace.gateway.store import Database


def run(args: argparse.Namespace) -> int:
    """Carry out one action and show the limits it is about."""

    async def act(database: Database) -> list[LimitRule]:
        registry = LimitRegistry(database, journal_of(args, database))
        match args.action:
            case "set":
                return [
                    await registry.set(
                        args.subject, What(args.what), args.amount, per=args.per or "", model=args.only or ""
                    )
                ]
            case "remove":
                return [await registry.remove(args.limit)]
            case _:
                return await registry.rules()

    rules = with_database(args, act)
    if args.json:
        print_json(rules if args.action == "list" else rules[0])
        return 0
    table = Table(box=None)
    for column in ("limit", "subject", "model", "what", "per", "amount"):
        table.add_column(column)
    for rule in rules:
        table.add_row(rule.id, rule.subject, rule.model or "any", rule.what, rule.per, f"{rule.amount:,}")
    print_table(table)
    return 0
