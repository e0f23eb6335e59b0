"""`headrace audit`: check, read, keep and thin out the audit log.

Owns what the tables show; the log itself is `gateway.audit`'s. A command that changes anything leaves a row.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TextIO

import msgspec
from rich.table import Table

from headrace.cli.accounts import journal_of, print_json, with_database
from headrace.cli.configured import settings_from
from headrace.cli.tables import print_table
from headrace.core.errors import ConfigError
from headrace.core.settings import read_secret
from headrace.econ import show_usd
from headrace.gateway.audit import KeyRing
from headrace.gateway.audit.chain import Chain, Head, read_head
from headrace.gateway.audit.content import open_content
from headrace.gateway.audit.gaps import Hold, hold, read_holds, release
from headrace.gateway.audit.keys import draw
from headrace.gateway.audit.reading import Filter, Found, all_rows, newest_rows
from headrace.gateway.audit.upkeep import Upkeep
from headrace.gateway.audit.verify import Anchor, Verdict, verify
from headrace.gateway.store import Database

EXIT_BROKEN = 1


def run(args: argparse.Namespace) -> int:
    """Carry out one action."""
    match args.action:
        case "key":
            return _new_key(args)
        case "verify":
            return _verify(args)
        case "anchor":
            return _anchor(args)
        case "show":
            return _show(args)
        case "export":
            return _export(args)
        case "prune":
            return _prune(args)
        case _:
            return _holds(args)


def _keys(args: argparse.Namespace) -> KeyRing:
    audit = settings_from(args).audit
    return KeyRing.read(audit.key, audit.old_keys, read_secret)


def _verify(args: argparse.Namespace) -> int:
    """Say whether the log is whole, and if not, which row is the first that is wrong."""
    keys, anchors = _keys(args), _read_anchors(args.anchors)

    async def check(database: Database) -> Verdict:
        return await verify(database, keys, anchors)

    found = with_database(args, check)
    if args.json:
        print_json({**found._asdict(), "head": found.head._asdict()})
    elif found.problem is not None:
        print(f"the audit log is broken: {found.problem}", file=sys.stderr)
    else:
        sealed = "no row is sealed with a key" if found.keyed_from is None else f"sealed from row {found.keyed_from} on"
        print(
            f"{found.rows:,} rows of the audit log are whole, {found.deleted:,} are past their retention and gone; "
            f"{sealed}; it ends at row {found.head.seq} with {found.head.digest or 'nothing'}"
        )
    return 0 if found.problem is None else EXIT_BROKEN


def _read_anchors(file: str | None) -> list[Anchor]:
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        heads = [msgspec.json.decode(line, type=dict[str, int | str]) for line in lines if line.strip()]
        return [Anchor(int(head["seq"]), str(head["digest"])) for head in heads]
    except (OSError, ValueError, KeyError, msgspec.MsgspecError) as err:
        raise ConfigError(f"{file} holds no anchors: {err}; `headrace audit anchor FILE` writes them") from err


def _anchor(args: argparse.Namespace) -> int:
    async def read(database: Database) -> Head:
        async with database.transaction(writes=False) as tx:
            return await read_head(tx)

    head = with_database(args, read)
    line = msgspec.json.encode(
        {"seq": head.seq, "digest": head.digest, "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    )
    if args.file is None:
        sys.stdout.write(line.decode() + "\n")
        return 0
    with Path(args.file).open("a", encoding="utf-8") as file:
        file.write(line.decode() + "\n")
    print(f"row {head.seq} is noted in {args.file}; keep it where nobody who can write to the database can")
    return 0


def _filter(args: argparse.Namespace) -> Filter:
    since = _day(args.since, "--since") if args.since else None
    until = _day(args.until, "--until") + timedelta(days=1) if args.until else None
    if since is not None and until is not None and since >= until:
        raise ConfigError(f"--since {args.since} is after --until {args.until}; give the earlier day first")
    return Filter(
        since_ns=0 if since is None else int(since.timestamp()) * 10**9,
        until_ns=Filter().until_ns if until is None else int(until.timestamp()) * 10**9,
        tenant=args.tenant,
        key_id=args.by_key,
        request_id=args.request,
        model=args.only,
        kind=args.kind,
        decision=args.decision,
        reason=args.reason,
    )


def _day(text: str, flag: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as err:
        raise ConfigError(f"{flag} is '{text}'; write a day such as 2027-01-31") from err


def _show(args: argparse.Namespace) -> int:
    wanted, keys = _filter(args), _keys(args)
    if not 1 <= args.rows <= 1_000:
        raise ConfigError(f"--rows is {args.rows}; show 1 to 1,000 rows, or export all")
    rows = with_database(args, lambda database: newest_rows(database, wanted, args.rows))
    if args.json:
        print_json([_document(found, keys if args.content else None) for found in rows])
        return 0
    table = Table(box=None)
    for column in ("row", "when", "who", "what", "model", "decision", "tokens", "$", "upstream"):
        table.add_column(column, overflow="fold")
    for found in rows:
        table.add_row(*_cells(found))
        if args.content and found.content is not None:
            said = open_content(found.content, keys)
            table.add_row("", "", "", said.request, "", said.answer)
    print_table(table)
    return 0


def _cells(found: Found) -> list[str]:
    row = found.row
    what = f"{row.method} {row.path}" if row.kind == "call" else f"{row.kind} {row.action} {row.target}".strip()
    why = ": ".join(part for part in (row.decision, row.reason or row.finish) if part) if row.kind == "call" else ""
    tokens = f"{row.input_tokens} + {row.output_tokens}" if row.requests else ""
    return [
        str(row.seq),
        f"{datetime.fromtimestamp(row.at_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S}",
        row.actor or "/".join(part for part in (row.tenant, row.key_id) if part),
        what,
        row.model,
        why + (f" ({row.degraded})" if row.degraded else ""),
        tokens,
        "" if row.cost_nano is None else show_usd(row.cost_nano),
        row.upstream,
    ]


def _document(found: Found, keys: KeyRing | None) -> dict[str, object]:
    """Return one row as an export has it; `keys` open its content."""
    document: dict[str, object] = {
        "at": f"{datetime.fromtimestamp(found.row.at_ns / 1e9, UTC).isoformat()}",
        **{name: value for name, value in msgspec.structs.asdict(found.row).items() if value not in ("", None)},
        "digest": found.digest,
    }
    if keys is not None and found.content is not None:
        document["content"] = open_content(found.content, keys)
    return document


def _export(args: argparse.Namespace) -> int:
    wanted, keys = _filter(args), _keys(args) if args.content else None

    async def write(database: Database) -> int:
        rows = all_rows(database, wanted)
        if args.file == "-":
            return await _write(rows, sys.stdout, keys)
        with open(args.file, "w", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
            return await _write(rows, file, keys)

    num_rows = with_database(args, write)
    print(f"{num_rows:,} rows of the audit log written to {args.file}", file=sys.stderr)
    return 0


async def _write(rows: AsyncIterator[Found], file: TextIO, keys: KeyRing | None) -> int:
    num_rows = 0
    async for found in rows:
        file.write(msgspec.json.encode(_document(found, keys)).decode() + "\n")
        num_rows += 1
    return num_rows


def _holds(args: argparse.Namespace) -> int:
    async def act(database: Database) -> list[Hold]:
        journal = journal_of(args, database)
        chain = journal.chain or Chain(database.dialect, _keys(args))
        async with database.transaction(writes=args.action != "holds") as tx:
            match args.action:
                case "hold":
                    who = {"tenant": args.tenant, "request_id": args.request}
                    return [await hold(tx, chain, **who, note=args.note, actor=journal.actor)]
                case "release":
                    return [await release(tx, chain, args.hold, actor=journal.actor)]
                case _:
                    return await read_holds(tx)

    found = with_database(args, act)
    if args.json:
        print_json([each._asdict() for each in found] if args.action == "holds" else found[0]._asdict())
        return 0
    table = Table(box=None)
    for column in ("hold", "of", "since", "note"):
        table.add_column(column)
    for each in found:
        subject = f"tenant:{each.tenant}" if each.tenant else f"request:{each.request_id}"
        table.add_row(each.id, subject, f"{datetime.fromtimestamp(each.created_ns / 1e9, UTC):%Y-%m-%d}", each.note)
    print_table(table)
    return 0


def _prune(args: argparse.Namespace) -> int:
    audit = settings_from(args).audit
    if audit.retention_days == 0:
        raise ConfigError("audit.retention_days is 0: rows are kept for ever", param="audit.retention_days")
    keys = _keys(args)

    async def act(database: Database) -> int:
        return await Upkeep(database, Chain(database.dialect, keys), audit.retention_days).prune()

    num_deleted = with_database(args, act)
    if args.json:
        print_json({"deleted": num_deleted})
    else:
        print(f"{num_deleted:,} rows older than {audit.retention_days} days are gone")
    return 0


def _new_key(args: argparse.Namespace) -> int:
    text = draw()
    if args.file is None:
        print(text)
        return 0
    try:
        with open(args.file, "x", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
            file.write(text + "\n")
    except FileExistsError as err:
        raise ConfigError(f"{args.file} exists; name another file, so that no key is lost") from err
    except OSError as err:
        raise ConfigError(f"{args.file} cannot be written: {err.strerror}") from err
    print(f'a new key is in {args.file}; name it: audit.key = "file:{args.file}"; without it content is lost')
    return 0
