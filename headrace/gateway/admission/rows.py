"""Accounts, reservations and settlements as rows: what is read into a book, and what a changed book writes back.

Owns the columns and their order, shared by the statements of `admission.batch` and `admission.swap`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from headrace.gateway.admission.book import Book, Reservation, Track, decode_holds, encode_holds
from headrace.gateway.budgets.account import Spend
from headrace.gateway.budgets.rules import account_window_s
from headrace.gateway.budgets.settlement import Settlement
from headrace.gateway.ledger import Course
from headrace.gateway.store import Cell, Row

Cells = tuple[Cell, ...]
_NUMBERS_OF_RESERVATION = ("granted_nano", "progress_nano", "num_input", "num_output")
_TEXTS_OF_COURSE = ("engine", "request_digest", "prefix_digests")
RESERVATION = {
    "id": "text",
    **dict.fromkeys(("is_open", "lease_until_ns", "created_ns"), "bigint"),
    **dict.fromkeys(("tenant", "key_id", "model", "task"), "text"),
    **dict.fromkeys(_NUMBERS_OF_RESERVATION, "bigint"),
    "holds": "text",
}
SETTLEMENT = {
    **dict.fromkeys(("id", "request_id"), "text"),
    "settled_ns": "bigint",
    **dict.fromkeys(("tenant", "key_id", "model", "task", "outcome"), "text"),
    **dict.fromkeys(("input_uncached", "cache_read", "cache_write", "output_text", "output_reasoning"), "bigint"),
    "cache_write_1h": "bigint",
    **dict.fromkeys(("is_estimate", "reserved_nano", "cost_nano"), "bigint"),
    "price_source": "text",
    **dict.fromkeys(("engine_ns", "machine_nano", "reported_nano", "priced_nano"), "bigint"),
    **{name: "text" if name in _TEXTS_OF_COURSE else "bigint" for name in Course._fields},
}
SPEND = {
    "id": "text",
    **dict.fromkeys(("spent_nano", "reserved_nano", "window_s"), "bigint"),
    "slices": "text",
    "updated_s": "bigint",
}
TRACK = {"id": "text", **dict.fromkeys(("full_ns", "held", "updated_s"), "bigint")}


class Changes(NamedTuple):
    """What a book writes: rows by their columns; `gone` are reservations that have ended."""

    reservations: list[Cells]
    gone: list[str]
    spends: list[Cells]
    tracks: list[Cells]
    settlements: list[Cells]


def changes(book: Book, now_ns: int) -> Changes:
    """Return what has to be written for a book to last, in the order in which rows are locked."""
    changed, now_s = sorted(book.changed), now_ns // 10**9
    return Changes(
        reservations=[_reservation_row(r) for a in changed if (r := book.reservations.get(a)) is not None],
        gone=sorted(book.gone),
        spends=[_spend_row(book.spends[a], now_s) for a in changed if a in book.spends],
        tracks=[(t.id, t.full_ns, t.held, now_s) for a in changed if (t := book.tracks.get(a)) is not None],
        settlements=[_settlement_row(book.settlements[a]) for a in sorted(book.settlements)],
    )


def read_spend(account: str, spent_nano: Cell, reserved_nano: Cell, slices: Cell) -> Spend:
    """Return an account of a budget."""
    assert isinstance(spent_nano, int)
    assert isinstance(reserved_nano, int)
    return Spend(
        id=account,
        spent_nano=spent_nano,
        reserved_nano=reserved_nano,
        window_s=account_window_s(account),
        slices={} if slices is None else msgspec.json.decode(str(slices), type=dict[int, int]),
    )


def read_track(account: str, full_ns: Cell, held: Cell) -> Track:
    """Return an account of a limit."""
    assert isinstance(full_ns, int)
    assert isinstance(held, int)
    return Track(id=account, full_ns=full_ns, held=held)


def read_reservation(row: Row) -> Reservation:
    """Return a request under way."""
    fields = {**row, "is_open": row["is_open"] == 1, "holds": decode_holds(str(row["holds"]))}
    return Reservation(**fields)  # type: ignore[arg-type]


def insert(table: str, columns: dict[str, str]) -> str:
    """Spell an insertion of one row."""
    places = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"


def replacing(columns: dict[str, str], *kept: str) -> str:
    """Spell what happens to a row that is there already: all of it is replaced but for its id and what is `kept`."""
    changed = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in ("id", *kept))
    return f"ON CONFLICT (id) DO UPDATE SET {changed}"


def _spend_row(spend: Spend, now_s: int) -> Cells:
    slices = msgspec.json.encode(spend.slices).decode() if spend.slices else None
    return (spend.id, spend.spent_nano, spend.reserved_nano, spend.window_s, slices, now_s)


def _reservation_row(r: Reservation) -> Cells:
    identity = (r.id, int(r.is_open), r.lease_until_ns, r.created_ns, r.tenant, r.key_id, r.model, r.task)
    return (*identity, r.granted_nano, r.progress_nano, r.num_input, r.num_output, encode_holds(r.holds))


def _settlement_row(s: Settlement) -> Cells:
    c = s.counts
    identity = (s.id, s.request_id, s.settled_ns, s.tenant, s.key_id, s.model, s.task, s.outcome)
    tokens = (c.input_uncached, c.cache_read, c.cache_write, c.output_text, c.output_reasoning, c.cache_write_1h)
    money = (s.reserved_nano, s.cost_nano, s.price_source, s.engine_ns, s.machine_nano)
    return (*identity, *tokens, int(s.is_estimate), *money, s.reported_nano, s.priced_nano, *s.course)
