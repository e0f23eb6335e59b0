"""Which models a caller may ask: the first stage before a model.

Owns nothing; the directory does. A key that has been removed since the call began may ask nothing more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from headrace.core.delta import Delta
from headrace.core.errors import Forbidden
from headrace.core.request import Request
from headrace.gateway.identity.directory import Directory
from headrace.gateway.pipeline import Next


class Permission:
    """Implements `gateway.pipeline.Stage`."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def __call__(self, request: Request, following: Next, /) -> AsyncIterator[Delta]:
        """Pass the request on if its key may ask this model. Raises Forbidden."""
        if request.key_id:
            key = self._directory.key(request.key_id)
            if key is None or not key.may_ask(request.model):
                allowed = ", ".join(f"'{name}'" for name in (key.models or ())) if key is not None else ""
                raise Forbidden(
                    f"key '{request.key_id}' may not ask model '{request.model}'; it may ask {allowed or 'nothing'}",
                    param="model",
                )
        return following(request)
