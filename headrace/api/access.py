"""What every HTTP call gets before routing: a request id, a check of the key, a line in the access log.

Owns: the headers `x-request-id` (echoed or made) and `x-correlation-id` (echoed).
Invariant: keys are compared in constant time and never logged; nor are bodies. The plain health endpoints need no key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.api.errors import error_response
from headrace.core.errors import Unauthorized
from headrace.core.protocols import Clock

_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_OPEN = ("/health", "/health/live", "/health/ready")  # `/health/progress` names requests and needs the key
_POLLED = ("/metrics", "/health", "/health/ready", "/health/live", "/health/progress")
_log = logging.getLogger(__name__)


class Access:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, clock: Clock, api_key: str | None) -> None:
        self._app = app
        self._clock = clock
        self._key = api_key.encode() if api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _safe(headers.get("x-request-id")) or secrets.token_hex(16)
        correlation_id = _safe(headers.get("x-correlation-id"))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["owner"] = _owner(headers)
        start_s = self._clock.now()
        status = 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode())]
                if correlation_id is not None:
                    extra.append((b"x-correlation-id", correlation_id.encode()))
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        try:
            if self._is_allowed(scope["path"], headers):
                await self._app(scope, receive, tell)
            else:
                refusal = Unauthorized("no valid API key; send 'Authorization: Bearer KEY' with the server's api_key")
                await error_response(refusal, request_id)(scope, receive, tell)
        finally:
            level = logging.DEBUG if scope["path"] in _POLLED else logging.INFO
            elapsed_ms = (self._clock.now() - start_s) * 1e3
            _log.log(level, "%s %s %s %.0f ms id=%s", scope["method"], scope["path"], status, elapsed_ms, request_id)

    def _is_allowed(self, path: str, headers: Headers) -> bool:
        if self._key is None or path in _OPEN:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key)


def _owner(headers: Headers) -> str:
    """Return whose requests these are: one name per credential, the same for all who send none."""
    credential = headers.get("authorization")
    return "" if credential is None else hashlib.sha256(credential.encode()).hexdigest()


def _safe(value: str | None) -> str | None:
    """Return an id that may go into headers and logs, or None."""
    return value if value is not None and _SAFE_ID.fullmatch(value) else None
