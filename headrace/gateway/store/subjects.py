"""Whom a limit or a budget is for: one key, one tenant, each of them, or all together.

Owns the spelling: `key:ID`, `tenant:ID`, `key:*`, `tenant:*`, `all`.
"""

from __future__ import annotations

from headrace.core.errors import InvalidRequest, NotFound
from headrace.gateway.store.database import Transaction

_TABLES = {"key": "keys", "tenant": "tenants"}


async def check_subject(tx: Transaction, subject: str) -> None:
    """Raise InvalidRequest or NotFound unless `subject` is well formed and exists."""
    kind, _, name = subject.partition(":")
    if subject == "all" or (kind in _TABLES and name == "*"):
        return
    if kind not in _TABLES or not name or not name.isprintable():
        raise InvalidRequest(
            f"subject '{subject[:80]}' is not one of tenant:ID, key:ID, tenant:*, key:*, all", param="subject"
        )
    if not await tx.fetch(f"SELECT id FROM {_TABLES[kind]} WHERE id = $1", name):
        raise NotFound(f"no {kind} '{name[:80]}'; `headrace {_TABLES[kind]} list` shows all", param="subject")


def check_model(model: str) -> None:
    """Raise InvalidRequest unless `model` can be a name; empty means any."""
    if len(model) > 256 or not (model.isprintable() or model == ""):
        raise InvalidRequest("'model' is no name of a model; use at most 256 printable characters", param="model")
