"""Who holds which key, in memory: the answer to every request's first question.

Owns the last loaded tenants and keys; `store.watch` says when to load. Answers without touching the database.
Invariant: an unknown key costs the same comparison as a wrong one. Nothing here logs or raises with a secret in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from headrace.core.errors import Unauthorized
from headrace.gateway.identity.records import Key, Tenant
from headrace.gateway.identity.registry import read_keys, read_pepper, read_tenants
from headrace.gateway.identity.secrets import Pepper, Presented, new_key_id, new_secret, parse
from headrace.gateway.store import Transaction

_NO_KEY = "no valid API key; send 'Authorization: Bearer hr-…', made with `headrace keys create`"


class Directory:
    """Tenants and keys, as of the last look. Implements `store.watch.Reader`."""

    def __init__(self, wall_s: Callable[[], float] = time.time) -> None:
        self._wall_s = wall_s
        self._tenants: dict[str, Tenant] = {}
        self._keys: dict[str, Key] = {}
        self._pepper = Pepper(Pepper.draw())
        self._decoy = Presented(new_key_id(), new_secret())

    @property
    def has_keys(self) -> bool:
        """Say whether a key was ever made: from then on every caller needs one, even if all are revoked."""
        return bool(self._keys)

    async def load(self, tx: Transaction) -> None:
        """Read everything."""
        tenants, keys = await read_tenants(tx), await read_keys(tx)
        if keys:
            self._pepper = await read_pepper(tx)
        self._tenants = {tenant.id: tenant for tenant in tenants}
        self._keys = {key.id: key for key in keys}

    def find(self, text: str) -> Key:
        """Return the key that a caller presents. Raises Unauthorized saying what is wrong, to its holder only."""
        presented = parse(text)
        key = self._keys.get(presented.key_id) if presented is not None else None
        if presented is None or key is None:
            self._pepper.matches(self._decoy, "0" * 64)
            raise Unauthorized(_NO_KEY)
        now_s = self._wall_s()
        if not self._pepper.matches(presented, key.digest) and not self._is_previous(key, presented, now_s):
            raise Unauthorized(_NO_KEY)
        if key.revoked_s is not None:
            raise Unauthorized(f"API key '{key.id}' is revoked; ask for a new one")
        if key.expires_s is not None and now_s >= key.expires_s:
            raise Unauthorized(f"API key '{key.id}' has expired; ask for a new one, or for a later expiry")
        tenant = self._tenants.get(key.tenant_id)
        if tenant is None or tenant.disabled_s is not None:
            raise Unauthorized(f"tenant '{key.tenant_id}' is disabled; none of its keys work")
        return key

    def key(self, key_id: str) -> Key | None:
        """Return a key by its public part."""
        return self._keys.get(key_id)

    def _is_previous(self, key: Key, presented: Presented, now_s: float) -> bool:
        if key.previous_digest is None or key.previous_until_s is None or now_s >= key.previous_until_s:
            return False
        return self._pepper.matches(presented, key.previous_digest)
