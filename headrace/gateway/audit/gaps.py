"""What retention and holds have made of the log: rows that are gone, rows that must stay.

Owns the tables `audit_gaps` and `audit_holds`. Every change to either is a row of the chain that carries the digest
of both, so that neither can be changed unseen.
Invariant: gaps do not touch; a gap knows the digests at both its ends, which bridge the chain over it.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from headrace.core.audit import AuditEvent
from headrace.core.errors import InvalidRequest, NotFound
from headrace.gateway.audit.chain import GENESIS, Chain, Entry, new_uid
from headrace.gateway.store import Row, Transaction

_GAP = "from_seq, until_seq, before_digest, digest"
_HOLD = "id, tenant, request_id, note, created_ns"
_BATCH = 2_000
_OLD = (
    "SELECT seq, digest FROM audit_rows WHERE at_ns < $1 AND NOT EXISTS (SELECT 1 FROM audit_holds AS h "
    "WHERE (h.tenant <> '' AND h.tenant = audit_rows.tenant) "
    "OR (h.request_id <> '' AND h.request_id = audit_rows.request_id)) "
    f"ORDER BY seq LIMIT {_BATCH}"
)


class Gap(NamedTuple):
    """Rows that are gone, both ends included."""

    from_seq: int
    until_seq: int
    before_digest: str
    digest: str


class Hold(NamedTuple):
    """Rows that retention leaves alone: a tenant's, or a request's."""

    id: str
    tenant: str
    request_id: str
    note: str
    created_ns: int


class State(msgspec.Struct, frozen=True):
    """What rows about retention and holds carry."""

    state: str
    rows: int = 0
    hold: str = ""
    note: str = ""


async def read_gaps(tx: Transaction) -> list[Gap]:
    """Read all gaps, in order."""
    return [_as_gap(row) for row in await tx.fetch(f"SELECT {_GAP} FROM audit_gaps ORDER BY from_seq")]


async def read_holds(tx: Transaction) -> list[Hold]:
    """Read all holds, oldest first."""
    rows = await tx.fetch(f"SELECT {_HOLD} FROM audit_holds ORDER BY created_ns, id")
    return [
        Hold(str(row["id"]), str(row["tenant"]), str(row["request_id"]), str(row["note"]), int(str(row["created_ns"])))
        for row in rows
    ]


def state_digest(gaps: Sequence[Gap], holds: Sequence[Hold]) -> str:
    """Return the digest of both tables; of empty ones, an empty text."""
    if not gaps and not holds:
        return ""
    return hashlib.sha256(msgspec.json.encode([gaps, holds])).hexdigest()


async def hold(
    tx: Transaction, chain: Chain, *, tenant: str = "", request_id: str = "", note: str = "", actor: str = ""
) -> Hold:
    """Keep the rows of a tenant or of a request from deletion. Raises InvalidRequest."""
    if bool(tenant) == bool(request_id):
        raise InvalidRequest("a hold is for one tenant or one request; name either", param="tenant")
    if max(len(tenant), len(request_id), len(note)) > 256 or not (tenant + request_id + note).isprintable():
        raise InvalidRequest("a hold's tenant, request and note have at most 256 printable characters", param="note")
    await chain.lock(tx)
    placed = Hold(f"hold-{secrets.token_hex(4)}", tenant, request_id, note, time.time_ns())
    sql = f"INSERT INTO audit_holds ({_HOLD}) VALUES ($1, $2, $3, $4, $5)"
    await tx.fetch(sql, *placed)
    subject = f"tenant:{tenant}" if tenant else f"request:{request_id}"
    await _note(tx, chain, AuditEvent(at_ns=placed.created_ns, kind="hold", actor=actor, target=subject), placed)
    return placed


async def release(tx: Transaction, chain: Chain, hold_id: str, *, actor: str = "") -> Hold:
    """End a hold; what is older than the retention goes with its next run. Raises NotFound."""
    await chain.lock(tx)
    found = next((each for each in await read_holds(tx) if each.id == hold_id), None)
    if found is None:
        raise NotFound(f"no hold '{hold_id[:80]}'; `headrace audit holds` lists all", param="id")
    await tx.fetch("DELETE FROM audit_holds WHERE id = $1", hold_id)
    subject = f"tenant:{found.tenant}" if found.tenant else f"request:{found.request_id}"
    await _note(tx, chain, AuditEvent(at_ns=time.time_ns(), kind="release", actor=actor, target=subject), found)
    return found


async def prune(tx: Transaction, chain: Chain, before_ns: int, *, actor: str = "gateway") -> int:
    """Delete rows from before `before_ns` that are not on hold, a batch of them; return their number."""
    await chain.lock(tx)
    old = await tx.fetch(_OLD, before_ns)
    if not old:
        return 0
    gaps = await read_gaps(tx)
    fresh = await _ranges(tx, [(int(str(row["seq"])), str(row["digest"])) for row in old], gaps)
    await tx.execute_many(
        "DELETE FROM audit_rows WHERE seq >= $1 AND seq <= $2", [(gap.from_seq, gap.until_seq) for gap in fresh]
    )
    merged = merge([*gaps, *fresh])
    known = set(gaps)
    await tx.execute_many(
        "DELETE FROM audit_gaps WHERE from_seq = $1", [(gap.from_seq,) for gap in known.difference(merged)]
    )
    sql = f"INSERT INTO audit_gaps ({_GAP}) VALUES ($1, $2, $3, $4)"
    await tx.execute_many(sql, [gap for gap in merged if gap not in known])
    event = AuditEvent(at_ns=time.time_ns(), kind="retention", actor=actor)
    await _note(tx, chain, event, rows=len(old), gaps=merged)
    return len(old)


def merge(gaps: Sequence[Gap]) -> list[Gap]:
    """Join gaps that touch."""
    joined: list[Gap] = []
    for gap in sorted(gaps):
        if joined and joined[-1].until_seq + 1 == gap.from_seq:
            gap = Gap(joined[-1].from_seq, gap.until_seq, joined[-1].before_digest, gap.digest)
            joined.pop()
        joined.append(gap)
    return joined


async def _ranges(tx: Transaction, old: Sequence[tuple[int, str]], gaps: Sequence[Gap]) -> list[Gap]:
    """Put rows that are to go into ranges without a hole."""
    ends = {gap.until_seq: gap.digest for gap in gaps}
    ranges: list[Gap] = []
    for seq, digest in old:
        if ranges and ranges[-1].until_seq + 1 == seq:
            ranges[-1] = ranges[-1]._replace(until_seq=seq, digest=digest)
            continue
        before = ends.get(seq - 1)
        if before is None and seq > 1:
            rows = await tx.fetch("SELECT digest FROM audit_rows WHERE seq = $1", seq - 1)
            before = str(rows[0]["digest"]) if rows else "missing"
        ranges.append(Gap(seq, seq, before or GENESIS, digest))
    return ranges


async def _note(
    tx: Transaction,
    chain: Chain,
    event: AuditEvent,
    subject: Hold | None = None,
    *,
    rows: int = 0,
    gaps: Sequence[Gap] | None = None,
) -> None:
    """Write into the chain what the tables are from now on."""
    state = state_digest(await read_gaps(tx) if gaps is None else gaps, await read_holds(tx))
    about = State(state, rows, "" if subject is None else subject.id, "" if subject is None else subject.note)
    noted = msgspec.structs.replace(event, detail=about)
    await chain.append(tx, [Entry(new_uid(), noted)])


def _as_gap(row: Row) -> Gap:
    return Gap(int(str(row["from_seq"])), int(str(row["until_seq"])), str(row["before_digest"]), str(row["digest"]))
