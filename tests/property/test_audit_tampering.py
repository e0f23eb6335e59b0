"""Whatever somebody without the key does to the tables of a sealed log, `verify` finds it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.core.audit import AuditEvent
from headrace.gateway.audit.chain import Chain, Entry
from headrace.gateway.audit.gaps import hold, prune
from headrace.gateway.audit.keys import KeyRing
from headrace.gateway.audit.verify import Verdict, verify
from headrace.gateway.store import Transaction, migrate, open_database
from tests.audit_scene import new_key

KEYS = KeyRing(new_key())
HALF = 15
KINDS = ("text", "letter", "delete", "swap", "copy", "cut", "shift", "gap", "head", "hold")
TEXTS = ("uid", "kind", "tenant", "key_id", "request_id", "model", "decision", "reason", "body", "digest", "content")


def event(n: int) -> AuditEvent:
    decision = "refused" if n % 5 == 0 else "allowed"
    return AuditEvent(at_ns=n, tenant=f"t{n % 3}", request_id=f"r{n}", model="m", decision=decision, cost_nano=n)


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of all kinds, some on hold, some gone: gaps between rows, a gap at the beginning."""
    path = tmp_path_factory.mktemp("audit") / "whole.db"

    async def fill(tx: Transaction) -> None:
        chain = Chain("sqlite", KEYS)
        await chain.append(tx, [Entry(f"u{n}", event(n), "sealed" if n % 4 == 0 else None) for n in range(HALF)])
        await hold(tx, chain, tenant="t2")
        await prune(tx, chain, 6)
        await chain.append(tx, [Entry(f"v{n}", event(n + HALF)) for n in range(HALF)])

    async def build() -> None:
        database = open_database(f"sqlite:///{path}")
        await database.open()
        await migrate(database)
        await database.run(fill)
        await database.close()

    asyncio.run(build())
    assert check(path).problem is None
    return path


def check(path: Path) -> Verdict:
    async def look() -> Verdict:
        database = open_database(f"sqlite:///{path}")
        await database.open()
        try:
            return await verify(database, KEYS)
        finally:
            await database.close()

    return asyncio.run(look())


def tables(connection: sqlite3.Connection) -> list[list[tuple[object, ...]]]:
    names = ("audit_rows", "audit_head", "audit_gaps", "audit_holds")
    return [connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in names]


def tamper(connection: sqlite3.Connection, draw: st.DataObject) -> None:
    """Do one thing that a writer to the database can do."""
    seqs = [seq for (seq,) in connection.execute("SELECT seq FROM audit_rows ORDER BY seq")]
    seq = draw.draw(st.sampled_from(seqs))
    what = draw.draw(
        st.sampled_from(["text", "letter", "delete", "swap", "copy", "cut", "shift", "gap", "head", "hold"])
    )
    match what:
        case "text":
            name = draw.draw(st.sampled_from(TEXTS))
            connection.execute(f"UPDATE audit_rows SET {name} = ? WHERE seq = ?", (draw.draw(st.text(max_size=9)), seq))
        case "letter":
            ((body,),) = connection.execute("SELECT body FROM audit_rows WHERE seq = ?", (seq,)).fetchall()
            place = draw.draw(st.integers(0, len(body) - 1))
            letter = draw.draw(st.sampled_from("0a}"))
            body = body[:place] + letter + body[place + 1 :]
            connection.execute("UPDATE audit_rows SET body = ? WHERE seq = ?", (body, seq))
        case "delete":
            connection.execute("DELETE FROM audit_rows WHERE seq = ?", (seq,))
        case "swap":
            other = draw.draw(st.sampled_from(seqs))
            for old, new in ((seq, -1), (other, seq), (-1, other)):
                connection.execute("UPDATE audit_rows SET seq = ? WHERE seq = ?", (new, old))
        case "copy":
            connection.execute(
                "INSERT INTO audit_rows SELECT ?, 'copied', at_ns, kind, tenant, key_id, request_id, model, decision, "
                "reason, body, content, digest FROM audit_rows WHERE seq = ?",
                (draw.draw(st.sampled_from([0, 1, seqs[-1] + 1, seqs[-1] + 5])), seq),
            )
        case "cut":
            connection.execute("DELETE FROM audit_rows WHERE seq > ?", (seq,))
            connection.execute(
                "UPDATE audit_head SET (seq, digest) = (SELECT seq, digest FROM audit_rows ORDER BY seq DESC LIMIT 1)"
            )
        case "shift":
            connection.execute("DELETE FROM audit_rows WHERE seq = ?", (seq,))
            for later in range(seq + 1, seqs[-1] + 1):
                connection.execute("UPDATE audit_rows SET seq = ? WHERE seq = ?", (later - 1, later))
        case "gap":
            connection.execute(
                "INSERT OR REPLACE INTO audit_gaps SELECT ?, ?, (SELECT digest FROM audit_rows WHERE seq = ?), digest "
                "FROM audit_rows WHERE seq = ?",
                (seq, seq, seq - 1, seq),
            )
            connection.execute("DELETE FROM audit_rows WHERE seq = ?", (seq,))
        case "head":
            name = draw.draw(st.sampled_from(("digest", "seal", "key_name")))
            connection.execute(f"UPDATE audit_head SET {name} = ?", (draw.draw(st.text(max_size=9)),))
        case "hold":
            connection.execute("DELETE FROM audit_holds")


def test_every_change_deletion_insertion_and_move_is_found(whole_log: Path, tmp_path: Path) -> None:
    @settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def is_found(draw: st.DataObject) -> None:
        path = tmp_path / "tampered.db"
        shutil.copy(whole_log, path)
        with closing(sqlite3.connect(path)) as connection:
            before = tables(connection)
            try:
                tamper(connection, draw)
            except sqlite3.IntegrityError:
                return
            connection.commit()
            has_changed = tables(connection) != before
        assert (check(path).problem is not None) == has_changed

    is_found()
