"""One key for everybody, from the configuration: the door of a server without a database.

Owns nothing but the key. Invariant: keys are compared in constant time. Without a key every caller may enter, which
`app.listening` allows on loopback only.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from headrace.core.caller import Caller
from headrace.core.errors import Unauthorized


class SharedKey:
    """Implements `core.caller.Gatekeeper`."""

    def __init__(self, key: str | None) -> None:
        self._key = key.encode() if key is not None else None

    async def identify(self, path: str, headers: Mapping[str, str]) -> Caller:
        """Let in whoever sends the key. Raises Unauthorized."""
        if self._key is not None:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
                raise Unauthorized("no valid API key; send 'Authorization: Bearer KEY' with the server's api_key")
        return Caller()
