"""Work that was turned away: how often, whose, and why, in rows without cost.

Owns the counts that are not written yet. A flood of refusals costs an addition each, and a row for each caller, model
and reason every `gateway.ledger_s`, whatever its size. Beyond `_MOST_GROUPS` of them the rest is counted together.
A process that is killed loses the counts since its last row.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

_MOST_GROUPS = 4096
OTHERS = "(others)"


class RefusalRow(NamedTuple):
    """So many calls of one key for one model were refused for one reason; the names are those of the columns.

    reason  the error's code
    model   empty where the call was refused before it was known
    """

    id: str
    from_ns: int
    until_ns: int
    tenant: str
    key_id: str
    model: str
    reason: str
    num: int


class Refusals:
    """Counts refusals until they are written."""

    def __init__(self, now_ns: int) -> None:
        self._name = f"ref-{secrets.token_hex(6)}"
        self._from_ns = now_ns
        self._num_taken = 0
        self._counts: dict[tuple[str, str, str, str], int] = {}

    def note(self, tenant: str, key_id: str, model: str, reason: str) -> None:
        """Count one."""
        group = (tenant, key_id, model, reason)
        if group not in self._counts and len(self._counts) >= _MOST_GROUPS:
            group = (OTHERS, OTHERS, OTHERS, reason)
        self._counts[group] = self._counts.get(group, 0) + 1

    def take(self, now_ns: int) -> list[RefusalRow]:
        """Return rows of what has been counted since the last ones, and begin anew."""
        counts, self._counts = self._counts, {}
        from_ns, self._from_ns = self._from_ns, now_ns
        self._num_taken += 1
        return [
            RefusalRow(f"{self._name}/{self._num_taken}/{index}", from_ns, now_ns, *group, num)
            for index, (group, num) in enumerate(counts.items())
        ]

    def put_back(self, rows: list[RefusalRow]) -> None:
        """Count rows again that could not be written."""
        for row in rows:
            self._from_ns = min(self._from_ns, row.from_ns)
            group = (row.tenant, row.key_id, row.model, row.reason)
            if group not in self._counts and len(self._counts) >= _MOST_GROUPS:
                group = (OTHERS, OTHERS, OTHERS, row.reason)
            self._counts[group] = self._counts.get(group, 0) + row.num
