"""Administration of tenants and keys: what the command line and the admin API do.

Owns the tables `tenants` and `keys`. Every command is one transaction that raises the generation, so running gateways
notice within about a second.
Invariant: a secret is returned once, by `create_key` and `rotate_key`, and never read back; the pepper is drawn with
the first use of the database. The tenant of a key never changes.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from headrace.core.errors import Conflict, InvalidRequest, NotFound
from headrace.gateway.audit import Journal
from headrace.gateway.identity.records import Key, Role, Tenant
from headrace.gateway.identity.secrets import Pepper, Presented, new_key_id, new_secret, spell
from headrace.gateway.store import Database, Row, RuleBroken, Transaction
from headrace.gateway.store.pages import Found, Page, read_page
from headrace.gateway.store.watch import bump

MAX_NAME_CHARS = 128
MAX_MODELS = 256
MAX_GRACE_S = 90 * 86_400
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LATEST_S = 1 << 40


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key and, this once, the text that callers send."""

    key: Key
    text: str = field(repr=False)


class Registry:
    """Commands on tenants and keys."""

    def __init__(
        self, database: Database, wall_s: Callable[[], float] = time.time, journal: Journal | None = None
    ) -> None:
        """Take the database, and the journal of whoever gives the commands."""
        self._journal = journal or Journal()
        self._database = database
        self._wall_s = wall_s

    async def create_tenant(self, tenant_id: str, name: str | None = None) -> Tenant:
        """Add a tenant. Raises InvalidRequest or Conflict."""
        if not _ID.fullmatch(tenant_id):
            raise InvalidRequest(
                f"tenant id '{tenant_id[:80]}' is not valid; use 1 to 64 of a-z 0-9 . _ -, a letter or digit first",
                param="id",
            )
        tenant = Tenant(id=tenant_id, name=_name(tenant_id if name is None else name), created_s=self._now_s())
        try:
            async with self._writing() as tx:
                await tx.fetch(
                    "INSERT INTO tenants VALUES ($1, $2, $3, NULL)", tenant_id, tenant.name, tenant.created_s
                )
                await self._journal.note(tx, "tenant.create", tenant_id, after=tenant)
        except RuleBroken as err:
            raise Conflict(f"tenant '{tenant_id}' exists already; choose another id", param="id") from err
        return tenant

    async def tenants(self) -> list[Tenant]:
        """List all tenants by id."""
        async with self._database.transaction(writes=False) as tx:
            return await read_tenants(tx)

    async def tenants_page(self, page: Page) -> Found[Tenant]:
        """List a page of tenants by id."""
        async with self._database.transaction(writes=False) as tx:
            rows, has_more = await read_page(tx, "tenants", page)
        return Found([_as_tenant(row) for row in rows], has_more)

    async def tenant(self, tenant_id: str) -> Tenant:
        """Return one tenant. Raises NotFound."""
        async with self._database.transaction(writes=False) as tx:
            return await _tenant(tx, tenant_id)

    async def change_tenant(
        self, tenant_id: str, *, name: str | None = None, is_disabled: bool | None = None
    ) -> Tenant:
        """Rename a tenant, or stop or start all its keys. None leaves a value as it is."""
        async with self._writing() as tx:
            tenant = await _tenant(tx, tenant_id)
            disabled_s = tenant.disabled_s
            if is_disabled is not None:
                disabled_s = (disabled_s or self._now_s()) if is_disabled else None
            new_name = tenant.name if name is None else _name(name)
            sql = "UPDATE tenants SET name = $1, disabled_s = $2 WHERE id = $3"
            await tx.fetch(sql, new_name, disabled_s, tenant_id)
            changed = await _tenant(tx, tenant_id)
            await self._journal.note(tx, "tenant.change", tenant_id, before=tenant, after=changed)
            return changed

    async def create_key(
        self,
        tenant_id: str,
        *,
        name: str = "",
        role: Role = Role.USER,
        models: Sequence[str] | None = None,
        expires_s: int | None = None,
    ) -> IssuedKey:
        """Add a key to a tenant. `models` None: all; `expires_s` None: never."""
        presented = Presented(new_key_id(), new_secret())
        allowed = _models(models)
        self._check_expiry(expires_s)
        async with self._writing() as tx:
            await _tenant(tx, tenant_id)
            digest = (await read_pepper(tx)).digest(presented)
            await tx.fetch(
                "INSERT INTO keys (id, tenant_id, name, role, models, digest, created_s, expires_s) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                *(presented.key_id, tenant_id, _name(name), role.value, allowed, digest, self._now_s(), expires_s),
            )
            key = await _key(tx, presented.key_id)
            await self._journal.note(tx, "key.create", key.id, after=key.shown())
        return IssuedKey(key, spell(*presented))

    async def keys(self, tenant_id: str | None = None) -> list[Key]:
        """List the keys of a tenant, or all. Raises NotFound for an unknown tenant."""
        async with self._database.transaction(writes=False) as tx:
            if tenant_id is not None:
                await _tenant(tx, tenant_id)
            return [key for key in await read_keys(tx) if tenant_id in (None, key.tenant_id)]

    async def keys_page(self, page: Page, tenant_id: str | None = None) -> Found[Key]:
        """List a page of a tenant's keys, or of all, by id. Raises NotFound for an unknown tenant."""
        async with self._database.transaction(writes=False) as tx:
            if tenant_id is not None:
                await _tenant(tx, tenant_id)
            of = None if tenant_id is None else ("tenant_id", tenant_id)
            rows, has_more = await read_page(tx, "keys", page, of=of)
        return Found([_as_key(row) for row in rows], has_more)

    async def key(self, key_id: str) -> Key:
        """Return one key. Raises NotFound."""
        async with self._database.transaction(writes=False) as tx:
            return await _key(tx, key_id)

    async def rotate_key(self, key_id: str, grace_s: int = 0) -> IssuedKey:
        """Give a key a new secret; the present one works for `grace_s` more seconds, any older one no longer."""
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidRequest(f"grace is {grace_s} s; it must be between 0 and {MAX_GRACE_S}", param="grace_s")
        secret = new_secret()
        async with self._writing() as tx:
            key = await _key(tx, key_id)
            if key.revoked_s is not None:
                raise Conflict(f"key '{key_id}' is revoked; create a new one")
            digest = (await read_pepper(tx)).digest(Presented(key_id, secret))
            sql = "UPDATE keys SET digest = $1, previous_digest = $2, previous_until_s = $3 WHERE id = $4"
            previous = (key.digest, self._now_s() + grace_s) if grace_s else (None, None)
            await tx.fetch(sql, digest, *previous, key_id)
            rotated = await _key(tx, key_id)
            await self._journal.note(tx, "key.rotate", key_id, before=key.shown(), after=rotated.shown())
            return IssuedKey(rotated, spell(key_id, secret))

    async def revoke_key(self, key_id: str) -> Key:
        """End a key for good. Idempotent."""
        async with self._writing() as tx:
            key = await _key(tx, key_id)
            sql = "UPDATE keys SET revoked_s = COALESCE(revoked_s, $1), previous_digest = NULL WHERE id = $2"
            await tx.fetch(sql, self._now_s(), key_id)
            revoked = await _key(tx, key_id)
            await self._journal.note(tx, "key.revoke", key_id, before=key.shown(), after=revoked.shown())
            return revoked

    async def change_key(
        self,
        key_id: str,
        *,
        name: str | None = None,
        models: Sequence[str] | msgspec.UnsetType | None = msgspec.UNSET,
        expires_s: int | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> Key:
        """Change what is given: `models` None allows all, `expires_s` None never expires."""
        async with self._writing() as tx:
            key = await _key(tx, key_id)
            allowed = _models(key.models if models is msgspec.UNSET else models)
            ends_s = key.expires_s if expires_s is msgspec.UNSET else expires_s
            self._check_expiry(ends_s if ends_s != key.expires_s else None)
            sql = "UPDATE keys SET name = $1, models = $2, expires_s = $3 WHERE id = $4"
            await tx.fetch(sql, key.name if name is None else _name(name), allowed, ends_s, key_id)
            changed = await _key(tx, key_id)
            await self._journal.note(tx, "key.change", key_id, before=key.shown(), after=changed.shown())
            return changed

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Transaction]:
        async with self._database.transaction() as tx:
            yield tx
            await bump(tx)

    def _now_s(self) -> int:
        return int(self._wall_s())

    def _check_expiry(self, expires_s: int | None) -> None:
        if expires_s is not None and not self._now_s() < expires_s < _LATEST_S:
            raise InvalidRequest(
                f"expiry is {expires_s}; give a later Unix time than now ({self._now_s()})", param="expires_s"
            )


async def read_tenants(tx: Transaction) -> list[Tenant]:
    """Read all tenants by id."""
    rows = await tx.fetch("SELECT id, name, created_s, disabled_s FROM tenants ORDER BY id")
    return [_as_tenant(row) for row in rows]


async def read_keys(tx: Transaction) -> list[Key]:
    """Read all keys, oldest first."""
    return [_as_key(row) for row in await tx.fetch("SELECT * FROM keys ORDER BY created_s, id")]


async def read_pepper(tx: Transaction) -> Pepper:
    """Read the database's pepper; draw it on first use."""
    sql = "INSERT INTO secrets VALUES ('pepper', $1) ON CONFLICT (name) DO NOTHING"
    rows = await tx.fetch("SELECT value FROM secrets WHERE name = 'pepper'")
    if not rows:
        await tx.fetch(sql, Pepper.draw())
        rows = await tx.fetch("SELECT value FROM secrets WHERE name = 'pepper'")
    return Pepper(str(rows[0]["value"]))


async def _tenant(tx: Transaction, tenant_id: str) -> Tenant:
    rows = await tx.fetch("SELECT id, name, created_s, disabled_s FROM tenants WHERE id = $1", tenant_id)
    if not rows:
        raise NotFound(f"no tenant '{tenant_id[:80]}'; `headrace tenants list` shows all", param="tenant")
    return _as_tenant(rows[0])


async def _key(tx: Transaction, key_id: str) -> Key:
    rows = await tx.fetch("SELECT * FROM keys WHERE id = $1", key_id)
    if not rows:
        raise NotFound(f"no key '{key_id[:16]}'; give the part between 'hr-' and the second '-'", param="key")
    return _as_key(rows[0])


def _as_tenant(row: Row) -> Tenant:
    return msgspec.convert(row, Tenant)


def _as_key(row: Row) -> Key:
    models = row["models"]
    decoded = None if models is None else tuple(msgspec.json.decode(str(models), type=list[str]))
    return msgspec.convert({**row, "models": decoded}, Key)


def _name(text: str) -> str:
    if len(text) > MAX_NAME_CHARS or not (text.isprintable() or text == ""):
        raise InvalidRequest(
            f"the name has {len(text)} characters; use at most {MAX_NAME_CHARS} printable ones", param="name"
        )
    return text


def _models(models: Sequence[str] | msgspec.UnsetType | None) -> str | None:
    if models is None or models is msgspec.UNSET:
        return None
    if not 1 <= len(models) <= MAX_MODELS or any(not 1 <= len(m) <= 256 or not m.isprintable() for m in models):
        raise InvalidRequest(
            f"'models' holds {len(models)} names; name 1 to {MAX_MODELS} models, or none to allow all", param="models"
        )
    return msgspec.json.encode(sorted(set(models))).decode()
