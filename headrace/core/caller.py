"""Who sent a request, and the seam that finds out.

Values only. A `Caller` is made before the body is read, by whoever knows the keys; a caller can name neither itself
nor its tenant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from headrace.core.errors import HeadraceError


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """One authenticated caller.

    tenant  whose money and limits are used; empty where there are no keys
    key_id  the public part of the key; empty where there are no keys
    role    what the key is for; empty where there are no keys
    models  what it may ask; None: all
    task    the caller's own name for the job that this is a step of (`X-Task-Id`); empty: none
    """

    tenant: str = ""
    key_id: str = ""
    role: str = ""
    models: frozenset[str] | None = None
    task: str = ""


NoteRefused = Callable[[Caller, str, HeadraceError], None]  # who, which model if that is known, why


def nobody_hears(caller: Caller, model: str, refusal: HeadraceError) -> None:
    """Take no note of a refusal, where no accounts are kept."""


class Gatekeeper(Protocol):
    """Decides who a caller is, from what it sent."""

    async def identify(self, path: str, headers: Mapping[str, str]) -> Caller:
        """Return the caller. Raises Unauthorized, Forbidden or StoreUnavailable."""
        ...
