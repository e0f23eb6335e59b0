"""The short way through Postgres: a batch is decided on accounts as they were last seen, and written if they still are.

Owns what this gateway has last seen of accounts. One statement in one round trip compares and writes; it is a
transaction of its own. Where another gateway has been at the accounts meanwhile it writes nothing and tells how they
stand now, and the batch is decided anew. A batch that keeps losing, or has anything unusual in it (a reservation that
is not open any more, an account that does not exist yet), is left to `admission.batch`, which locks first.
Invariant: nothing is granted, refused or settled on accounts that were not the database's own at that moment. All of an
account's state is compared, so it does not matter who changed it, or whether it was changed back.
Locks are taken in the order of `admission.batch`, so the two ways cannot wait for each other in a circle.
"""

from __future__ import annotations

import itertools

from headrace.gateway.admission import rows
from headrace.gateway.admission.batch import Answer, Batch, Renew, Settle
from headrace.gateway.admission.book import Book
from headrace.gateway.admission.lending import Turn
from headrace.gateway.store import Cell, Database, Value

MAX_TRIES = 3
_MAX_SEEN = 20_000
_Stand = tuple[Cell, ...]


class Swap:
    """Carries out batches on one Postgres database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._spends: dict[str, _Stand] = {}  # spent, reserved, slices
        self._paces: dict[str, _Stand] = {}  # full, held

    def forget(self) -> None:
        """Know nothing of the accounts any more."""
        self._spends.clear()
        self._paces.clear()

    async def try_carry_out(self, batch: Batch) -> list[Answer] | None:
        """Return the answers, or None where the batch has to be carried out under locks. Raises StoreUnavailable."""
        standing = [command.known for command in batch.commands if isinstance(command, Settle)]
        standing += [command.row for command in batch.commands if isinstance(command, Turn) and command.row is not None]
        held = batch.rows()
        if any(isinstance(command, Renew) for command in batch.commands):
            return None
        for _ in range(MAX_TRIES):
            spends, paces = (sorted(accounts) for accounts in batch.accounts())
            book = Book(
                spends={a: rows.read_spend(a, *self._spends.get(a, (0, 0, None))) for a in spends},
                tracks={a: rows.read_track(a, *self._paces.get(a, (0, 0))) for a in paces},
                reservations={one.id: one for one in standing if one.id in held},
            )
            answers = batch.decide(book)
            changes = rows.changes(book, batch.now_ns)
            found = await self._database.fetch(
                _SWAP,
                sorted(held),
                *_columns([(a, *self._spends.get(a, (0, 0, None))) for a in spends], 4),
                *_columns([(a, *self._paces.get(a, (0, 0))) for a in paces], 3),
                *_columns(changes.reservations, len(rows.RESERVATION)),
                changes.gone,
                *_columns(changes.spends, len(rows.SPEND)),
                *_columns(changes.tracks, len(rows.TRACK)),
                *_columns(changes.settlements, len(rows.SETTLEMENT)),
            )
            verdict, *fresh = found
            if verdict["one"] == 1:
                self._remember(changes)
                return answers
            if verdict["two"] != 1:  # a reservation that is not open any more
                return None
            for row in fresh:
                stands, width = (self._spends, 3) if row["kind"] == "spend" else (self._paces, 2)
                stands[str(row["id"])] = (row["one"], row["two"], row["three"])[:width]
            if len(fresh) < len(spends) + len(paces):  # accounts that do not exist yet
                return None
        return None

    def _remember(self, changes: rows.Changes) -> None:
        if len(self._spends) + len(self._paces) > _MAX_SEEN:
            self.forget()
        for account, spent_nano, reserved_nano, _, slices, _ in changes.spends:
            self._spends[str(account)] = (spent_nano, reserved_nano, slices)
        for account, full_ns, held, _ in changes.tracks:
            self._paces[str(account)] = (full_ns, held)


def _columns(cells: list[rows.Cells], width: int) -> list[Value]:
    """Turn rows into one list for each column."""
    return [list(column) for column in zip(*cells, strict=True)] if cells else [()] * width


def _spell() -> str:
    """Spell the statement."""
    places = itertools.count(1)

    def place(kind: str) -> str:
        return f"${next(places)}::{kind}[]"

    def table(columns: dict[str, str], ids: str | None = None) -> str:
        cells = [place(kind) if name != "id" or ids is None else ids for name, kind in columns.items()]
        return f"unnest({', '.join(cells)}) AS new ({', '.join(columns)})"

    def updated(columns: dict[str, str]) -> str:
        return ", ".join(f"{column} = new.{column}" for column in columns if column != "id")

    held = place("text")
    was_spend = {"id": "text", "spent_nano": "bigint", "reserved_nano": "bigint", "slices": "text"}
    was_pace = {"id": "text", "full_ns": "bigint", "held": "bigint"}
    seen_spends, seen_paces = table(was_spend), table(was_pace)
    begun = table(rows.RESERVATION)
    gone, spends = place("text"), place("text")
    new_spends = table(rows.SPEND, spends)
    paces = place("text")
    new_paces = table(rows.TRACK, paces)
    ended = table(rows.SETTLEMENT)
    # Each of the first CTEs needs the one before it: that is the order of the locks. The division by zero is an
    # assertion: what was compared has been written, or nothing is.
    return f"""
    WITH held AS MATERIALIZED (
        SELECT id FROM reservations WHERE id = ANY({held}) AND is_open = 1 ORDER BY id FOR UPDATE
    ),
    stands AS MATERIALIZED (SELECT (SELECT count(*) FROM held) = cardinality({held}) AS is_so),
    was_spend AS MATERIALIZED (SELECT * FROM {seen_spends}),
    was_pace AS MATERIALIZED (SELECT * FROM {seen_paces}),
    spend AS MATERIALIZED (
        SELECT id, spent_nano, reserved_nano, slices FROM spends
        WHERE id = ANY(ARRAY(SELECT id FROM was_spend)) AND (SELECT is_so FROM stands) ORDER BY id FOR UPDATE
    ),
    pace AS MATERIALIZED (
        SELECT id, full_ns, held FROM paces
        WHERE id = ANY(ARRAY(SELECT id FROM was_pace)) AND (SELECT count(*) FROM spend) >= 0
        AND (SELECT is_so FROM stands) ORDER BY id FOR UPDATE
    ),
    same AS MATERIALIZED (
        SELECT stands.is_so AND (
            SELECT count(*) FROM pace JOIN was_pace AS was USING (id)
            WHERE pace.full_ns = was.full_ns AND pace.held = was.held
        ) = (SELECT count(*) FROM was_pace) AND (
            SELECT count(*) FROM spend JOIN was_spend AS was USING (id)
            WHERE spend.spent_nano = was.spent_nano AND spend.reserved_nano = was.reserved_nano
            AND spend.slices IS NOT DISTINCT FROM was.slices
        ) = (SELECT count(*) FROM was_spend) AS is_so FROM stands
    ),
    begun AS (
        INSERT INTO reservations ({", ".join(rows.RESERVATION)}) SELECT new.* FROM {begun}, same WHERE same.is_so
    ),
    gone AS (
        DELETE FROM reservations AS old USING same WHERE same.is_so AND old.id = ANY({gone}) RETURNING 1
    ),
    put_spend AS (
        UPDATE spends AS old SET {updated(rows.SPEND)} FROM {new_spends}, same
        WHERE same.is_so AND old.id = new.id RETURNING 1
    ),
    put_pace AS (
        UPDATE paces AS old SET {updated(rows.TRACK)} FROM {new_paces}, same
        WHERE same.is_so AND old.id = new.id RETURNING 1
    ),
    ended AS (
        INSERT INTO settlements ({", ".join(rows.SETTLEMENT)}) SELECT new.* FROM {ended}, same WHERE same.is_so
    )
    SELECT 'verdict' AS kind, NULL AS id, stands.is_so::int::bigint AS two, NULL AS three,
        same.is_so::int::bigint / CASE
            WHEN NOT same.is_so OR cardinality({gone}) + cardinality({spends}) + cardinality({paces})
                = (SELECT count(*) FROM gone) + (SELECT count(*) FROM put_spend) + (SELECT count(*) FROM put_pace)
            THEN 1 ELSE 0 END AS one
    FROM same, stands
    UNION ALL
    SELECT 'spend', id, reserved_nano, slices, spent_nano FROM spend, same WHERE NOT same.is_so
    UNION ALL SELECT 'pace', id, held, NULL, full_ns FROM pace, same WHERE NOT same.is_so
    """


_SWAP = _spell()
