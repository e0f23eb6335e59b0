"""One transaction over the accounts of several requests: open and lock them, decide, write back what changed.

Owns the SQL of accounts, reservations and settlements. Runs in the database's own thread on SQLite, on the event loop
on Postgres; the same code either way.
Invariant: rows are locked in one order everywhere: reservations, then spends, then paces, each by id. On SQLite the
transaction itself is the lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import msgspec

from headrace.core.errors import HeadraceError
from headrace.gateway.admission.asks import Ask, Granted
from headrace.gateway.admission.book import Book, Reservation, Track, decode_holds, encode_holds
from headrace.gateway.budgets.account import Spend
from headrace.gateway.budgets.rules import account_window_s
from headrace.gateway.budgets.settlement import Settlement
from headrace.gateway.ledger import Course
from headrace.gateway.store import Row, Transaction, Value

Dialect = Literal["sqlite", "postgres"]
MAX_EXPIRED = 100
_SPEND = "id, spent_nano, reserved_nano, window_s, slices"
_RESERVATION = (
    "id, is_open, lease_until_ns, created_ns, tenant, key_id, model, task, granted_nano, progress_nano, "
    "num_input, num_output, holds"
)
_SAVE_SPEND = (
    f"INSERT INTO spends ({_SPEND}, updated_s) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET "
    "spent_nano = excluded.spent_nano, reserved_nano = excluded.reserved_nano, window_s = excluded.window_s, "
    "slices = excluded.slices, "
    "updated_s = excluded.updated_s"
)
_MAKE_SPEND = (
    "INSERT INTO spends (id, spent_nano, reserved_nano, updated_s) VALUES ($1, 0, 0, 0) ON CONFLICT (id) DO NOTHING"
)
_MAKE_PACE = "INSERT INTO paces (id, full_ns, held, updated_s) VALUES ($1, 0, 0, 0) ON CONFLICT (id) DO NOTHING"
_SAVE_TRACK = (
    "INSERT INTO paces (id, full_ns, held, updated_s) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE SET "
    "full_ns = excluded.full_ns, held = excluded.held, updated_s = excluded.updated_s"
)
_SAVE_RESERVATION = (
    f"INSERT INTO reservations ({_RESERVATION}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) "
    "ON CONFLICT (id) DO UPDATE SET is_open = excluded.is_open, lease_until_ns = excluded.lease_until_ns, "
    "progress_nano = excluded.progress_nano, num_input = excluded.num_input, num_output = excluded.num_output"
)
# What an expired reservation has written is corrected by its real end; who and what it was stays.
_SETTLEMENT_OF = ("id", "tenant", "key_id", "model", "task", "reserved_nano")
_SETTLEMENT = (
    *("id", "request_id", "settled_ns", "tenant", "key_id", "model", "task", "outcome"),
    *("input_uncached", "cache_read", "cache_write", "output_text", "output_reasoning", "is_estimate"),
    *("reserved_nano", "cost_nano", "price_source", "engine_ns", "machine_nano"),
    *Course._fields,
)
_SAVE_SETTLEMENT = (
    f"INSERT INTO settlements ({', '.join(_SETTLEMENT)}) "
    f"VALUES ({', '.join(f'${place}' for place in range(1, len(_SETTLEMENT) + 1))}) ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _SETTLEMENT if name not in _SETTLEMENT_OF)
)


@dataclass(frozen=True, slots=True)
class Reserve:
    """Ask for a request to begin; answered with Granted or the refusal."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Settle:
    """End a request; answered with None."""

    known: Reservation
    settlement: Settlement


@dataclass(frozen=True, slots=True)
class Renew:
    """Keep a request's reservation; answered with whether it still stands."""

    known: Reservation


Command = Reserve | Settle | Renew
Answer = Granted | HeadraceError | bool | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Commands that are carried out together."""

    commands: Sequence[Command]
    now_ns: int
    lease_ns: int
    dialect: Dialect

    async def carry_out(self, tx: Transaction) -> list[Answer]:
        """Return the answer of each command. What ends makes room before anything begins."""
        book = await self._open(tx)
        answers: list[Answer] = [None] * len(self.commands)
        order = sorted(range(len(self.commands)), key=lambda i: isinstance(self.commands[i], Reserve))
        for i in order:
            answers[i] = self._decide(book, self.commands[i])
        await _save(tx, book, self.now_ns)
        return answers

    def accounts(self) -> tuple[set[str], set[str]]:
        """Name the spends and the paces that the commands touch."""
        spends: set[str] = set()
        paces: set[str] = set()
        for command in self.commands:
            match command:
                case Reserve(ask):
                    spends.update(hold.account for hold in ask.budgets)
                    paces.update(hold.account for hold in ask.limits)
                case Settle(known, _):
                    spends.update(known.holds.spends)
                    paces.update(hold.account for hold in known.holds.tokens)
                    paces.update(known.holds.parallel)
        return spends, paces

    def _decide(self, book: Book, command: Command) -> Answer:
        match command:
            case Reserve(ask):
                try:
                    return book.reserve(ask, self.now_ns, self.lease_ns)
                except HeadraceError as refusal:
                    return refusal
            case Settle(known, settlement):
                book.settle(known, settlement, self.now_ns)
                return None
            case Renew(known):
                return book.renew(known, self.lease_ns, self.now_ns)

    async def _open(self, tx: Transaction) -> Book:
        book = Book()
        known = {command.known.id for command in self.commands if not isinstance(command, Reserve)}
        spends, paces = self.accounts()
        for row in await _rows(tx, self.dialect, f"SELECT {_RESERVATION} FROM reservations", known):
            _put_reservation(book, row)
        late = [c.known.id for c in self.commands if isinstance(c, Settle) and c.known.id not in book.reservations]
        for row in await _rows(tx, self.dialect, "SELECT id FROM settlements", late):
            book.settled.add(str(row["id"]))
        await _open_accounts(tx, self.dialect, book, spends, paces)
        return book


async def expire(tx: Transaction, dialect: Dialect, now_ns: int) -> int:
    """Release reservations whose lease has run out; return their number."""
    skip = " FOR UPDATE SKIP LOCKED" if dialect == "postgres" else ""
    rows = await tx.fetch(
        f"SELECT {_RESERVATION} FROM reservations WHERE is_open = 1 AND lease_until_ns < $1 "
        f"ORDER BY id LIMIT {MAX_EXPIRED}{skip}",
        now_ns,
    )
    if not rows:
        return 0
    book = Book()
    for row in rows:
        _put_reservation(book, row)
    holds = [found.holds for found in book.reservations.values()]
    spends = {account for hold in holds for account in hold.spends}
    paces = {token.account for hold in holds for token in hold.tokens} | {a for hold in holds for a in hold.parallel}
    await _open_accounts(tx, dialect, book, spends, paces)
    for found in list(book.reservations.values()):
        book.expire(found, now_ns)
    await _save(tx, book, now_ns)
    return len(rows)


async def _open_accounts(
    tx: Transaction, dialect: Dialect, book: Book, spends: Iterable[str], paces: Iterable[str]
) -> None:
    for row in await _rows(tx, dialect, f"SELECT {_SPEND} FROM spends", spends, _MAKE_SPEND):
        slices = row["slices"]
        spend = Spend(
            id=str(row["id"]),
            spent_nano=_int(row, "spent_nano"),
            reserved_nano=_int(row, "reserved_nano"),
            window_s=account_window_s(str(row["id"])),
            slices={} if slices is None else msgspec.json.decode(str(slices), type=dict[int, int]),
        )
        book.spends[spend.id] = spend
    for row in await _rows(tx, dialect, "SELECT id, full_ns, held FROM paces", paces, _MAKE_PACE):
        track = Track(id=str(row["id"]), full_ns=_int(row, "full_ns"), held=_int(row, "held"))
        book.tracks[track.id] = track


async def _rows(
    tx: Transaction, dialect: Dialect, select: str, ids: Iterable[str], make: str | None = None
) -> list[Row]:
    """Read rows by id. Postgres locks them in order; a row that is missing is made first, so that it can be locked."""
    wanted = sorted(ids)
    if not wanted:
        return []
    if dialect == "sqlite":
        return [row for one in wanted for row in await tx.fetch(f"{select} WHERE id = $1", one)]
    locked = f"{select} WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE"
    rows = await tx.fetch(locked, wanted)
    missing = sorted(set(wanted) - {str(row["id"]) for row in rows})
    if missing and make is not None:
        await tx.execute_many(make, [(one,) for one in missing])
        rows += await tx.fetch(locked, missing)
    return rows


def _put_reservation(book: Book, row: Row) -> None:
    fields = {**row, "is_open": row["is_open"] == 1, "holds": decode_holds(str(row["holds"]))}
    book.reservations[str(row["id"])] = Reservation(**fields)  # type: ignore[arg-type]


async def _save(tx: Transaction, book: Book, now_ns: int) -> None:
    changed, now_s = sorted(book.changed), now_ns // 10**9
    spends = [_spend_row(book.spends[a], now_s) for a in changed if a in book.spends]
    tracks = [(t.id, t.full_ns, t.held, now_s) for a in changed if (t := book.tracks.get(a)) is not None]
    reservations = [_reservation_row(r) for a in changed if (r := book.reservations.get(a)) is not None]
    settlements = [_settlement_row(book.settlements[a]) for a in sorted(book.settlements)]
    gone = [(a,) for a in sorted(book.gone)]
    for sql, rows in (
        (_SAVE_RESERVATION, reservations),
        ("DELETE FROM reservations WHERE id = $1", gone),
        (_SAVE_SPEND, spends),
        (_SAVE_TRACK, tracks),
        (_SAVE_SETTLEMENT, settlements),
    ):
        if rows:
            await tx.execute_many(sql, rows)


def _spend_row(spend: Spend, now_s: int) -> tuple[Value, ...]:
    slices = msgspec.json.encode(spend.slices).decode() if spend.slices else None
    return (spend.id, spend.spent_nano, spend.reserved_nano, spend.window_s, slices, now_s)


def _reservation_row(r: Reservation) -> tuple[Value, ...]:
    identity = (r.id, int(r.is_open), r.lease_until_ns, r.created_ns, r.tenant, r.key_id, r.model, r.task)
    return (*identity, r.granted_nano, r.progress_nano, r.num_input, r.num_output, encode_holds(r.holds))


def _settlement_row(s: Settlement) -> tuple[Value, ...]:
    identity = (s.id, s.request_id, s.settled_ns, s.tenant, s.key_id, s.model, s.task, s.outcome)
    money = (s.reserved_nano, s.cost_nano, s.price_source, s.engine_ns, s.machine_nano)
    return (*identity, *astuple(s.counts), int(s.is_estimate), *money, *s.course)


def _int(row: Row, name: str) -> int:
    value = row[name]
    assert isinstance(value, int)
    return value
