"""Tenants and keys as they stand in the database: values only.

Invariant: a record never holds a secret, only its keyed digest, which `repr` does not show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a key is for."""

    USER = "user"  # ask models
    MONITOR = "monitor"  # read /metrics
    AUDITOR = "auditor"  # read the audit log
    ADMIN = "admin"  # everything, /admin included


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One customer or team: owner of keys, limits and budgets. `disabled_s` None: its keys work."""

    id: str
    name: str
    created_s: int
    disabled_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. `models` None: all. For a while after a rotation the previous secret works too."""

    id: str
    tenant_id: str
    name: str
    role: Role
    models: tuple[str, ...] | None
    digest: str = field(repr=False)
    created_s: int
    previous_digest: str | None = field(default=None, repr=False)
    previous_until_s: int | None = None
    expires_s: int | None = None
    revoked_s: int | None = None

    def may_ask(self, model: str) -> bool:
        """Say whether this key may use `model`."""
        return self.models is None or model in self.models

    def shown(self) -> dict[str, object]:
        """Return what may be written down of it."""
        return {
            "tenant": self.tenant_id,
            "name": self.name,
            "role": self.role.value,
            "models": self.models,
            "expires_s": self.expires_s,
            "revoked_s": self.revoked_s,
            "previous_until_s": self.previous_until_s,
        }
