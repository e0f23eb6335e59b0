"""One transaction over the accounts of several requests: open and lock them, decide, write back what changed.

Owns the commands and the statements that lock. Runs in the database's own thread on SQLite, on the event loop on
Postgres; the same code either way. What rows look like is in `admission.rows`.
Invariant: rows are locked in one order everywhere: reservations, then spends, then paces, each by id. On SQLite the
transaction itself is the lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from headrace.core.errors import HeadraceError
from headrace.gateway.admission import rows
from headrace.gateway.admission.asks import Ask, Granted
from headrace.gateway.admission.book import Book, Reservation
from headrace.gateway.admission.lending import Turn, Turned, take_turn
from headrace.gateway.budgets.settlement import Settlement
from headrace.gateway.store import Row, Transaction

Dialect = Literal["sqlite", "postgres"]
MAX_EXPIRED = 100
_RESERVATION = ", ".join(rows.RESERVATION)
_MAKE_SPEND = (
    "INSERT INTO spends (id, spent_nano, reserved_nano, updated_s) VALUES ($1, 0, 0, 0) ON CONFLICT (id) DO NOTHING"
)
_MAKE_PACE = "INSERT INTO paces (id, full_ns, held, updated_s) VALUES ($1, 0, 0, 0) ON CONFLICT (id) DO NOTHING"
_SAVE_SPEND = f"{rows.insert('spends', rows.SPEND)} {rows.replacing(rows.SPEND)}"
_SAVE_TRACK = f"{rows.insert('paces', rows.TRACK)} {rows.replacing(rows.TRACK)}"
_SAVE_RESERVATION = (
    f"{rows.insert('reservations', rows.RESERVATION)} "
    f"{rows.replacing(rows.RESERVATION, 'created_ns', 'tenant', 'key_id', 'model', 'task', 'granted_nano', 'holds')}"
)
# What an expired reservation has written is corrected by its real end; who and what it was stays.
_SAVE_SETTLEMENT = (
    f"{rows.insert('settlements', rows.SETTLEMENT)} "
    f"{rows.replacing(rows.SETTLEMENT, 'tenant', 'key_id', 'model', 'task', 'reserved_nano')}"
)


@dataclass(frozen=True, slots=True)
class Reserve:
    """Ask for a request to begin; answered with Granted or the refusal."""

    ask: Ask


class Settle(msgspec.Struct, frozen=True, gc=False):
    """End a request; answered with None."""

    known: Reservation
    settlement: Settlement


@dataclass(frozen=True, slots=True)
class Renew:
    """Keep a request's reservation; answered with whether it still stands."""

    known: Reservation


_TURNS: dict[type, int] = {Turn: 0, Reserve: 2}
Command = Reserve | Settle | Renew | Turn
Answer = Granted | HeadraceError | Turned | bool | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Commands that are carried out together."""

    commands: Sequence[Command]
    now_ns: int
    lease_ns: int
    dialect: Dialect

    async def carry_out(self, tx: Transaction) -> list[Answer]:
        """Return the answer of each command."""
        book = await self._open(tx)
        answers = self.decide(book)
        await _save(tx, book, self.now_ns)
        return answers

    def decide(self, book: Book) -> list[Answer]:
        """Carry out the commands on open accounts. What ends makes room before anything begins.

        Allowances come first: what was drawn from them may have ended already.
        """
        answers: list[Answer] = [None] * len(self.commands)
        order = sorted(range(len(self.commands)), key=lambda i: _TURNS.get(type(self.commands[i]), 1))
        for i in order:
            answers[i] = self._decide(book, self.commands[i])
        return answers

    def rows(self) -> set[str]:
        """Name the reservations that the commands change and that should have a row."""
        found: set[str] = set()
        drawn: set[str] = set()
        for command in self.commands:
            if isinstance(command, Settle | Renew):
                found.add(command.known.id)
            elif isinstance(command, Turn):
                if command.row is not None:
                    found.add(command.row.id)
                drawn.update([draw.reservation.id for draw in command.draws])
        return found - drawn

    def accounts(self) -> tuple[set[str], set[str]]:
        """Name the spends and the paces that the commands touch."""
        spends: set[str] = set()
        paces: set[str] = set()
        for command in self.commands:
            if isinstance(command, Settle):
                holds = command.known.holds
                spends.update(holds.spends)
                paces.update(holds.parallel)
                for token in holds.tokens:
                    paces.add(token.account)
            elif isinstance(command, Reserve) or (isinstance(command, Turn) and command.touches_accounts):
                spends.update(command.ask.terms.spends)
                paces.update(hold.account for hold in command.ask.terms.limits)
        return spends, paces

    def _decide(self, book: Book, command: Command) -> Answer:
        if isinstance(command, Settle):
            book.settle(command.known, command.settlement, self.now_ns)
            return None
        if isinstance(command, Turn):
            return take_turn(book, command, self.now_ns, self.lease_ns)
        if isinstance(command, Renew):
            return book.renew(command.known, self.lease_ns, self.now_ns)
        try:
            return book.reserve(command.ask, self.now_ns, self.lease_ns)
        except HeadraceError as refusal:
            return refusal

    async def _open(self, tx: Transaction) -> Book:
        book = Book()
        spends, paces = self.accounts()
        for row in await _rows(tx, self.dialect, f"SELECT {_RESERVATION} FROM reservations", self.rows()):
            found = rows.read_reservation(row)
            book.reservations[found.id] = found
        turns = [c for c in self.commands if isinstance(c, Turn) and _is_open(book, c.row)]
        begun = {draw.reservation.id for turn in turns for draw in turn.draws}
        ended = [c.known.id for c in self.commands if isinstance(c, Settle)]
        late = [one for one in ended if one not in book.reservations and one not in begun]
        for row in await _rows(tx, self.dialect, "SELECT id FROM settlements", late):
            book.settled.add(str(row["id"]))
        await _open_accounts(tx, self.dialect, book, spends, paces)
        return book


def _is_open(book: Book, row: Reservation | None) -> bool:
    found = None if row is None else book.reservations.get(row.id)
    return found is not None and found.is_open


async def expire(tx: Transaction, dialect: Dialect, now_ns: int) -> int:
    """Release reservations whose lease has run out; return their number."""
    skip = " FOR UPDATE SKIP LOCKED" if dialect == "postgres" else ""
    expired = await tx.fetch(
        f"SELECT {_RESERVATION} FROM reservations WHERE is_open = 1 AND lease_until_ns < $1 "
        f"ORDER BY id LIMIT {MAX_EXPIRED}{skip}",
        now_ns,
    )
    if not expired:
        return 0
    book = Book()
    for row in expired:
        found = rows.read_reservation(row)
        book.reservations[found.id] = found
    holds = [found.holds for found in book.reservations.values()]
    spends = {account for hold in holds for account in hold.spends}
    paces = {token.account for hold in holds for token in hold.tokens} | {a for hold in holds for a in hold.parallel}
    await _open_accounts(tx, dialect, book, spends, paces)
    for found in list(book.reservations.values()):
        book.expire(found, now_ns)
    await _save(tx, book, now_ns)
    return len(expired)


async def _open_accounts(
    tx: Transaction, dialect: Dialect, book: Book, spends: Iterable[str], paces: Iterable[str]
) -> None:
    columns = "id, spent_nano, reserved_nano, slices"
    for row in await _rows(tx, dialect, f"SELECT {columns} FROM spends", spends, _MAKE_SPEND):
        spend = rows.read_spend(str(row["id"]), row["spent_nano"], row["reserved_nano"], row["slices"])
        book.spends[spend.id] = spend
    for row in await _rows(tx, dialect, "SELECT id, full_ns, held FROM paces", paces, _MAKE_PACE):
        track = rows.read_track(str(row["id"]), row["full_ns"], row["held"])
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
    found = await tx.fetch(locked, wanted)
    missing = sorted(set(wanted) - {str(row["id"]) for row in found})
    if missing and make is not None:
        await tx.execute_many(make, [(one,) for one in missing])
        found += await tx.fetch(locked, missing)
    return found


async def _save(tx: Transaction, book: Book, now_ns: int) -> None:
    reservations, gone, spends, tracks, settlements = rows.changes(book, now_ns)
    for sql, written in (
        (_SAVE_RESERVATION, reservations),
        ("DELETE FROM reservations WHERE id = $1", [(one,) for one in gone]),
        (_SAVE_SPEND, spends),
        (_SAVE_TRACK, tracks),
        (_SAVE_SETTLEMENT, settlements),
    ):
        if written:
            await tx.execute_many(sql, written)
