"""`headrace tenants`: who owns keys, limits and budgets."""

from __future__ import annotations

import argparse

from rich.table import Table

from headrace.cli.accounts import day, journal_of, print_json, with_database
from headrace.cli.tables import print_table
from headrace.gateway.identity import Registry, Tenant
from headrace.gateway.store import Database


def run(args: argparse.Namespace) -> int:
    """Carry out one action and show the tenants it is about."""

    async def act(database: Database) -> list[Tenant]:
        registry = Registry(database, journal=journal_of(args, database))
        match args.action:
            case "create":
                return [await registry.create_tenant(args.tenant, args.name)]
            case "disable" | "enable":
                return [await registry.change_tenant(args.tenant, is_disabled=args.action == "disable")]
            case _:
                return await registry.tenants()

    tenants = with_database(args, act)
    if args.json:
        print_json(tenants if args.action == "list" else tenants[0])
        return 0
    table = Table(box=None)
    for column in ("tenant", "name", "created", "state"):
        table.add_column(column)
    for tenant in tenants:
        state = "works" if tenant.disabled_s is None else f"disabled {day(tenant.disabled_s)}"
        table.add_row(tenant.id, tenant.name, day(tenant.created_s), state)
    print_table(table)
    return 0
