"""Changes of the administration, written into the audit log by the very transaction that makes them.

Owns who is named as the one who did it. A registry is given the journal of its caller; a change that cannot be
written down does not take place.
"""

from __future__ import annotations

import time

import msgspec

from headrace.core.audit import AuditEvent
from headrace.core.caller import Caller
from headrace.gateway.audit.chain import Chain, Entry, new_uid
from headrace.gateway.store import Transaction


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stood there before and after; None: nothing did."""

    before: object = None
    after: object = None


class Journal:
    """Notes the changes that one caller makes. Without a chain nothing is noted."""

    def __init__(
        self, chain: Chain | None = None, *, actor: str = "", caller: Caller | None = None, request_id: str = ""
    ) -> None:
        self.chain = chain
        self.actor = actor
        self._caller = Caller() if caller is None else caller
        self._request_id = request_id

    async def note(
        self, tx: Transaction, action: str, target: str, *, before: object = None, after: object = None
    ) -> None:
        """Write a change down, as a part of `tx`. `before` and `after` hold no secret. Raises ConfigError."""
        if self.chain is None:
            return
        event = AuditEvent(
            at_ns=time.time_ns(),
            kind="change",
            actor=self.actor,
            tenant=self._caller.tenant,
            key_id=self._caller.key_id,
            role=self._caller.role,
            request_id=self._request_id,
            action=action,
            target=target,
            detail=Change(before, after),
        )
        await self.chain.append(tx, [Entry(new_uid(), event)])
