"""Keys as people and programs may see them: never a digest, a secret only when it is new.

Owns the shape; used by the command line and the admin API, so both say the same.
"""

from __future__ import annotations

import msgspec

from headrace.gateway.identity.records import Key, Role
from headrace.gateway.identity.registry import IssuedKey


class ShownKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key without its secret. Times are Unix seconds."""

    id: str
    tenant: str
    name: str
    role: Role
    models: tuple[str, ...] | None
    created_s: int
    expires_s: int | None
    revoked_s: int | None
    previous_until_s: int | None


class ShownNewKey(ShownKey, frozen=True, kw_only=True):
    """A key that was made or rotated just now; `key` is the text that callers send."""

    key: str


def show_key(key: Key) -> ShownKey:
    """Leave out what proves the key."""
    return ShownKey(
        id=key.id,
        tenant=key.tenant_id,
        name=key.name,
        role=key.role,
        models=key.models,
        created_s=key.created_s,
        expires_s=key.expires_s,
        revoked_s=key.revoked_s,
        previous_until_s=key.previous_until_s,
    )


def show_issued(issued: IssuedKey) -> ShownNewKey:
    """Show a new key, its secret included."""
    return ShownNewKey(key=issued.text, **msgspec.structs.asdict(show_key(issued.key)))
