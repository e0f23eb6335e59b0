"""`headrace keys`: make, list, rotate and revoke the keys that callers send."""

from __future__ import annotations

import argparse
import time

from rich.table import Table

from headrace.cli.accounts import day, journal_of, moment, print_json, seconds, with_database
from headrace.cli.tables import print_table
from headrace.gateway.identity import IssuedKey, Key, Registry, Role
from headrace.gateway.identity.shown import show_issued, show_key
from headrace.gateway.store import Database


def run(args: argparse.Namespace) -> int:
    """Carry out one action. A new secret is written to standard output, this once."""

    async def act(database: Database) -> IssuedKey | list[Key]:
        registry = Registry(database, journal=journal_of(args, database))
        match args.action:
            case "create":
                return await registry.create_key(
                    args.tenant,
                    name=args.name,
                    role=Role(args.role),
                    models=args.allowed,
                    expires_s=None if args.expires is None else moment(args.expires),
                )
            case "rotate":
                return await registry.rotate_key(args.key, seconds(args.grace))
            case "revoke":
                return [await registry.revoke_key(args.key)]
            case _:
                return await registry.keys(args.tenant)

    done = with_database(args, act)
    if isinstance(done, IssuedKey):
        _show_new(done, args)
    elif args.json:
        print_json([show_key(key) for key in done] if args.action == "list" else show_key(done[0]))
    else:
        _show_table(done)
    return 0


def _show_new(issued: IssuedKey, args: argparse.Namespace) -> None:
    if args.json:
        print_json(show_issued(issued))
        return
    print(f"key {issued.key.id} of tenant {issued.key.tenant_id}; it is shown this once:")
    print(issued.text)


def _show_table(keys: list[Key]) -> None:
    table = Table(box=None)
    for column in ("key", "tenant", "name", "role", "models", "created", "expires", "state"):
        table.add_column(column)
    for key in keys:
        models = "all" if key.models is None else ", ".join(key.models)
        table.add_row(
            key.id, key.tenant_id, key.name, key.role, models, day(key.created_s), day(key.expires_s), _state(key)
        )
    print_table(table)


def _state(key: Key) -> str:
    now_s = time.time()
    if key.revoked_s is not None:
        return f"revoked {day(key.revoked_s)}"
    if key.expires_s is not None and now_s >= key.expires_s:
        return "expired"
    if key.previous_until_s is not None and now_s < key.previous_until_s:
        return f"works; the secret before too until {day(key.previous_until_s)}"
    return "works"
