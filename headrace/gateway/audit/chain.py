"""The chain: rows that each cover the one before, so that none can be changed, moved, added or taken out unseen.

Owns the tables `audit_rows` and `audit_head`, and the one way to add to them. One chain for a database: appends of
several gateways and of commands take turns at the head's row.

    digest(n) = H(digest(n - 1) \\n body(n))        H is SHA-256, or HMAC-SHA-256 under the log's key
    head      = seq and digest of the last row, sealed by the same key

Invariant: `body` is what was hashed, byte for byte; it holds the digest of the row's content. Rows are numbered
without a hole. A head whose seal is wrong, or that has gone back behind what this process has written, is not passed
over: the next row is an alarm, and `verify` fails on it from then on.
Source: Schneier and Kelsey, Secure audit logs to support computer forensics, 1999.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from headrace.core.audit import AuditEvent
from headrace.core.errors import ConfigError
from headrace.gateway.audit.keys import KeyRing
from headrace.gateway.store import Row, Transaction, Value

GENESIS = hashlib.sha256(b"headrace audit").hexdigest()
_encoder = msgspec.json.Encoder()
_COLUMNS = "seq, uid, at_ns, kind, tenant, key_id, request_id, model, decision, reason, body, content, digest"
_ADD = f"INSERT INTO audit_rows ({_COLUMNS}) VALUES ({', '.join(f'${n}' for n in range(1, 14))})"
_MOVE = (
    "INSERT INTO audit_head (id, seq, digest, key_name, seal) VALUES (1, $1, $2, $3, $4) ON CONFLICT (id) DO UPDATE "
    "SET seq = excluded.seq, digest = excluded.digest, key_name = excluded.key_name, seal = excluded.seal"
)
_LAST = "SELECT seq, digest FROM audit_rows ORDER BY seq DESC LIMIT 1"


class AuditRow(AuditEvent, frozen=True, kw_only=True, omit_defaults=True):
    """An event in its place in the chain.

    uid             unique; says which gateway wrote it
    key_name        of the key that it is sealed with; empty: none
    content_digest  of its sealed content, empty if there is none
    """

    seq: int
    uid: str
    key_name: str = ""
    content_digest: str = ""


class Entry(NamedTuple):
    """An event on its way into the chain, with its content, sealed."""

    uid: str
    event: AuditEvent
    content: str | None = None


class Head(NamedTuple):
    """Where the chain ends."""

    seq: int
    digest: str
    key_name: str
    seal: str


class Chain:
    """Adds to the chain of one database. Remembers how far it has come, so that it cannot be cut back unseen."""

    def __init__(self, dialect: str, keys: KeyRing) -> None:
        self.keys = keys
        self._lock = " FOR UPDATE" if dialect == "postgres" else ""
        self._seen = 0

    async def append(self, tx: Transaction, entries: Sequence[Entry]) -> Head:
        """Add entries in order, within `tx`. Raises ConfigError if the log has another key."""
        head = await read_head(tx, self._lock)
        self.check_key(head)
        end = _end(head, await tx.fetch(_LAST))
        wrong = self._wrong(head, end)
        rows: list[tuple[Value, ...]] = []
        seq, digest, key_name = end.seq, end.digest or GENESIS, self.keys.writing_name
        for entry in ([_alarm(head, wrong)] if wrong is not None else []) + list(entries):
            seq += 1
            row = _place(entry, seq, key_name)
            body = _encoder.encode(row)
            digest = link(self.keys, key_name, digest, body)
            rows.append((*columns(row), body.decode(), entry.content, digest))
        await tx.execute_many(_ADD, rows)
        moved = Head(seq, digest, key_name, seal(self.keys, key_name, seq, digest))
        await tx.fetch(_MOVE, *moved)
        return moved

    def confirm(self, head: Head) -> None:
        """Remember an end whose transaction has been committed."""
        self._seen = max(self._seen, head.seq)

    async def lock(self, tx: Transaction) -> None:
        """Take the log's turn, for a transaction that reads before it adds."""
        await read_head(tx, self._lock)

    def check_key(self, head: Head) -> None:
        """Raise ConfigError unless this process may add to a log that ends like that."""
        if head.seq and head.key_name not in self.keys:
            raise ConfigError(
                f"the audit log is sealed with key {head.key_name}, which is not here; name its place in audit.key, or "
                "in audit.old_keys beside a new one",
                param="audit.key",
            )
        if head.key_name and self.keys.current is None:
            raise ConfigError("the audit log is sealed; name the place of its key in audit.key", param="audit.key")

    def _wrong(self, head: Head, end: Head) -> str | None:
        """Say how it shows that somebody has been at the end of the chain."""
        if not is_sealed(self.keys, head):
            return "the head's seal is wrong"
        if head.seq < self._seen:
            return f"the head was at {self._seen} before"
        return None if head == end else f"row {end.seq} stands behind or instead of the head"


def new_uid() -> str:
    """Name a row that no gateway numbers."""
    return f"row-{secrets.token_hex(8)}"


def link(keys: KeyRing, key_name: str, before: str, body: bytes) -> str:
    """Return the digest of a row after the row whose digest is `before`. Raises KeyError for an unknown key."""
    return keys.digest(key_name, before.encode() + b"\n" + body)


def seal(keys: KeyRing, key_name: str, seq: int, digest: str) -> str:
    """Return what proves a head."""
    return keys.digest(key_name, f"head {seq} {digest}".encode())


def is_sealed(keys: KeyRing, head: Head) -> bool:
    """Say whether a head is one that a holder of its key has written; an empty log has none."""
    if head.seq == 0:
        return head.digest == "" and head.seal == ""
    return hmac.compare_digest(seal(keys, head.key_name, head.seq, head.digest).encode(), head.seal.encode())


def content_digest(content: str | None) -> str:
    """Return the digest of sealed content, as it stands in the row's body."""
    return "" if content is None else hashlib.sha256(content.encode()).hexdigest()


def columns(row: AuditRow) -> tuple[Value, ...]:
    """Return the columns that repeat what is in the body, in the order of the table."""
    return (
        *(row.seq, row.uid, row.at_ns, row.kind, row.tenant, row.key_id, row.request_id, row.model),
        *(row.decision, row.reason),
    )


async def read_head(tx: Transaction, lock: str = "") -> Head:
    """Read where the chain ends."""
    rows = await tx.fetch(f"SELECT seq, digest, key_name, seal FROM audit_head WHERE id = 1{lock}")
    return as_head(rows[0]) if rows else Head(0, "missing", "", "")


def as_head(row: Row) -> Head:
    """Read a head from its row."""
    return Head(int(str(row["seq"])), str(row["digest"]), str(row["key_name"]), str(row["seal"]))


def _place(entry: Entry, seq: int, key_name: str) -> AuditRow:
    fields = msgspec.structs.asdict(entry.event)
    return AuditRow(seq=seq, uid=entry.uid, key_name=key_name, content_digest=content_digest(entry.content), **fields)


def _end(head: Head, last: Sequence[Row]) -> Head:
    """Return where to go on: at the head, unless the last row says otherwise; retention may have deleted it."""
    if not last or (seq := int(str(last[0]["seq"]))) < head.seq:
        return head
    return head._replace(seq=seq, digest=str(last[0]["digest"]))


def _alarm(head: Head, wrong: str) -> Entry:
    detail = {"seq": head.seq, "what": wrong}
    return Entry(new_uid(), AuditEvent(at_ns=time.time_ns(), kind="alarm", actor="gateway", detail=detail))
