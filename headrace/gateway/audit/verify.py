"""Checking the whole log: every digest made again, every number accounted for, both ends looked at.

Owns nothing; reads in one snapshot, page by page, so a log of any length is checked in little memory while gateways
go on writing.
Finds: a changed row or content, one that was taken out, put in or moved, an end that was cut off, gaps and holds that
no row speaks of, rows under another key. What it cannot find without an anchor kept elsewhere: a log that was put back
to an earlier state as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from headrace.gateway.audit.chain import GENESIS, AuditRow, Head, columns, content_digest, is_sealed, link, read_head
from headrace.gateway.audit.gaps import Gap, State, read_gaps, read_holds, state_digest
from headrace.gateway.audit.keys import KeyRing
from headrace.gateway.store import Database, Row, Transaction

_PAGE = 1_000
_STATEFUL = ("retention", "hold", "release")
_decoder = msgspec.json.Decoder(AuditRow)


class Anchor(NamedTuple):
    """An end of the chain that was noted elsewhere: the log must still lead there."""

    seq: int
    digest: str


class Verdict(NamedTuple):
    """What was found.

    rows        that are there and fit
    deleted     by retention
    keyed_from  first row that is sealed with a key; None: none is
    seq         where the problem is; 0: nowhere in particular
    problem     the first thing that does not fit; None: all does
    """

    rows: int
    deleted: int
    keyed_from: int | None
    head: Head
    seq: int = 0
    problem: str | None = None


class _Broken(Exception):
    def __init__(self, seq: int, problem: str) -> None:
        super().__init__(problem)
        self.seq, self.problem = seq, problem


async def verify(database: Database, keys: KeyRing, anchors: Sequence[Anchor] = ()) -> Verdict:
    """Check the log."""
    async with database.transaction(writes=False) as tx:
        if database.dialect == "postgres":
            await tx.fetch("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        walk = _Walk(keys, await read_gaps(tx), anchors)
        head = await read_head(tx)
        try:
            await walk.all_rows(tx)
            walk.check_end(head)
            walk.check_state(state_digest(walk.gaps, await read_holds(tx)))
            walk.check_anchors()
        except _Broken as broken:
            return Verdict(walk.num_rows, walk.num_deleted, walk.keyed_from, head, broken.seq, broken.problem)
    return Verdict(walk.num_rows, walk.num_deleted, walk.keyed_from, head)


class _Walk:
    """One walk along the chain."""

    def __init__(self, keys: KeyRing, gaps: list[Gap], anchors: Sequence[Anchor]) -> None:
        self.gaps = gaps
        self.num_rows = 0
        self.num_deleted = 0
        self.keyed_from: int | None = None
        self._keys = keys
        self._gap_at = {gap.from_seq: gap for gap in gaps}
        self._anchors = {anchor.seq: anchor.digest for anchor in anchors}
        self._seq = 0
        self._digest = GENESIS
        self._state = ""

    async def all_rows(self, tx: Transaction) -> None:
        """Follow the chain. Raises _Broken at the first row that does not fit."""
        after = -(1 << 62)  # before row 1 there must be none
        while page := await tx.fetch(f"SELECT * FROM audit_rows WHERE seq > $1 ORDER BY seq LIMIT {_PAGE}", after):
            for row in page:
                self._row(row)
            after = self._seq

    def check_end(self, head: Head) -> None:
        """Raise _Broken unless the chain ends at its head."""
        while self._seq < head.seq and self._cross():
            pass
        if self._gap_at:
            raise _Broken(min(self._gap_at), "retention is said to have deleted rows that are there")
        if head.key_name not in self._keys:
            raise _Broken(head.seq, f"the head is sealed with key {head.key_name}, which was not given")
        if not is_sealed(self._keys, head):
            raise _Broken(head.seq, "the head's seal is wrong: somebody else has written it")
        if head.seq > self._seq:
            raise _Broken(self._seq + 1, _missing(self._seq + 1, head.seq, " at the end"))
        if head.seq and (head.seq, head.digest) != (self._seq, self._digest):
            raise _Broken(self._seq, f"the head is at row {head.seq}; row {self._seq} does not belong to the log")
        if self.keyed_from is not None and not head.key_name:
            raise _Broken(head.seq, "the head is not sealed with a key, and earlier rows are")

    def check_state(self, state: str) -> None:
        """Raise _Broken unless gaps and holds are what the last row about them says."""
        if state != self._state:
            raise _Broken(0, "gaps or holds were changed and no row of the log speaks of it")

    def check_anchors(self) -> None:
        """Raise _Broken if an anchor lies beyond the end."""
        for seq in self._anchors:
            if seq > self._seq:
                raise _Broken(seq, f"the log ends at row {self._seq}, and an anchor saw row {seq}: its end was cut off")

    def _row(self, stored: Row) -> None:
        seq = int(str(stored["seq"]))
        while self._seq + 1 < seq and self._cross():
            pass
        if seq <= self._seq:
            raise _Broken(seq, f"row {seq} does not belong to the log")
        if seq != self._seq + 1:
            raise _Broken(self._seq + 1, _missing(self._seq + 1, seq - 1))
        body = str(stored["body"]).encode()
        try:
            row = _decoder.decode(body)
        except msgspec.MsgspecError as err:
            raise _Broken(seq, f"row {seq} cannot be read") from err
        names = ("seq", "uid", "at_ns", "kind", "tenant", "key_id", "request_id", "model", "decision", "reason")
        if columns(row) != tuple(stored[name] for name in names):
            raise _Broken(seq, f"row {seq}: its columns do not say what its body says")
        if self.keyed_from is not None and not row.key_name:
            raise _Broken(seq, f"row {seq} is not sealed with a key, and earlier rows are")
        if row.key_name not in self._keys:
            raise _Broken(seq, f"row {seq} is sealed with key {row.key_name}, which was not given")
        if link(self._keys, row.key_name, self._digest, body) != stored["digest"]:
            raise _Broken(seq, f"row {seq} was changed, or does not follow the row before it")
        content = stored["content"]
        if content_digest(None if content is None else str(content)) != row.content_digest:
            raise _Broken(seq, f"row {seq}: its content was changed or taken away")
        if row.kind == "alarm":
            raise _Broken(seq, f"row {seq} is an alarm: a gateway found the end of the log not as it had left it")
        self._advance(seq, str(stored["digest"]))
        self.num_rows += 1
        if row.key_name and self.keyed_from is None:
            self.keyed_from = seq
        if row.kind in _STATEFUL:
            with contextlib.suppress(msgspec.MsgspecError):  # what is no state will not match
                self._state = msgspec.convert(row.detail, State).state

    def _cross(self) -> bool:
        """Step over a gap that begins here; say whether there was one."""
        gap = self._gap_at.pop(self._seq + 1, None)
        if gap is None:
            return False
        if gap.before_digest != self._digest or gap.until_seq < gap.from_seq:
            raise _Broken(gap.from_seq, f"the gap from row {gap.from_seq} does not follow the row before it")
        for seq in self._anchors:
            if gap.from_seq <= seq < gap.until_seq:
                self._anchors[seq] = ""  # deleted since; what lies behind proves the chain
        self.num_deleted += gap.until_seq - gap.from_seq + 1
        self._advance(gap.until_seq, gap.digest)
        return True

    def _advance(self, seq: int, digest: str) -> None:
        anchored = self._anchors.get(seq)
        if anchored and anchored != digest:
            raise _Broken(seq, f"row {seq} is not the one that an anchor saw")
        self._seq, self._digest = seq, digest


def _missing(first: int, last: int, where: str = "") -> str:
    return f"row {first}{where} is missing" if first == last else f"rows {first} to {last}{where} are missing"
