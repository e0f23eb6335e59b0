"""The door: from an HTTP call's headers to its caller.

Owns the rule which role may call which path. Used by `api.access` through `core.caller.Gatekeeper`.
Invariant: where a key was ever made, every path but health needs one; the tenant comes from the key alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.core.caller import Caller
from headrace.core.errors import Forbidden, Unauthorized
from headrace.gateway.identity.directory import Directory
from headrace.gateway.identity.records import Key, Role
from headrace.gateway.identity.secrets import parse
from headrace.gateway.store.watch import Watch

_ADMIN_PATH = "/admin"
_AUDIT_PATH = "/admin/v1/audit"
_MONITORED = ("/metrics", "/health/progress")
_MAX_CALLERS = 4096


class Gate:
    """Keys in a database. Implements `core.caller.Gatekeeper`."""

    def __init__(self, directory: Directory, watch: Watch) -> None:
        self._directory = directory
        self._watch = watch
        self._callers: dict[str, tuple[Key, Caller]] = {}

    async def identify(self, path: str, headers: Mapping[str, str]) -> Caller:
        """Return the caller whose key is in `authorization` (or `x-api-key`)."""
        if not self._watch.is_fresh:
            await self._watch.ensure_fresh()
        if not self._directory.has_keys:
            if _is_below(path, _ADMIN_PATH):
                raise Unauthorized("administration needs a key; make one: headrace keys create TENANT --role admin")
            return Caller()
        text = presented_key(headers)
        try:
            key = self._directory.find(text)
            _check_role(key, path)
        except Unauthorized as refusal:
            refusal.key_id = claimed_id(text)
            raise
        except Forbidden as refusal:
            refusal.key_id, refusal.tenant = key.id, key.tenant_id
            raise
        known = self._callers.get(key.id)
        if known is None or known[0] is not key:  # a record changes by being loaded anew
            if len(self._callers) >= _MAX_CALLERS:
                self._callers.clear()
            models = None if key.models is None else frozenset(key.models)
            known = key, Caller(tenant=key.tenant_id, key_id=key.id, role=key.role.value, models=models)
            self._callers[key.id] = known
        return known[1]


def presented_key(headers: Mapping[str, str]) -> str:
    """Return what stands where a key belongs, or an empty text."""
    scheme, _, text = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return text.strip()
    return headers.get("x-api-key", "").strip()


def claimed_id(text: str) -> str:
    """Return the public part of what stands where a key belongs, if it has the form of one."""
    presented = parse(text)
    return "" if presented is None else presented.key_id


def _check_role(key: Key, path: str) -> None:
    if key.role is Role.USER and path.startswith("/v1/"):  # nearly every call
        return
    if key.role is Role.ADMIN or (key.role is Role.AUDITOR and _is_below(path, _AUDIT_PATH)):
        return
    if _is_below(path, _ADMIN_PATH):
        raise Forbidden(f"key '{key.id}' has the role '{key.role}'; {_ADMIN_PATH} needs 'admin'")
    if path in _MONITORED:
        if key.role is not Role.MONITOR:
            raise Forbidden(f"key '{key.id}' has the role '{key.role}'; {path} needs 'monitor' or 'admin'")
    elif key.role is Role.AUDITOR:
        raise Forbidden(f"key '{key.id}' has the role 'auditor', which reads {_AUDIT_PATH} only")
    elif key.role is Role.MONITOR:
        raise Forbidden(f"key '{key.id}' has the role 'monitor', which reads {' and '.join(_MONITORED)} only")


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")
