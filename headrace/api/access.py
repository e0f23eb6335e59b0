"""What every HTTP call gets before routing: a request id, a caller, a trace, an audit trail, a line in the access log.

Owns: the headers `x-request-id` (echoed or made) and `x-correlation-id` (echoed), and the removal of headers by which
a caller tries to name its own tenant.
Invariant: keys are never logged; nor are bodies. The plain health endpoints need no key.
"""

from __future__ import annotations

import logging
import re

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.api.errors import error_response
from headrace.api.state import ApiState
from headrace.api.trail import Trail
from headrace.core.caller import Caller
from headrace.core.errors import HeadraceError, InvalidRequest
from headrace.core.random_ids import random_id
from headrace.core.tracing import Span, stage
from headrace.obs import LogTag, tag_logs, untag_logs

_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_OPEN = ("/health", "/health/live", "/health/ready")  # `/health/progress` names requests and needs the key
_POLLED = ("/metrics", "/health", "/health/ready", "/health/live", "/health/progress", "/health/upstreams")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
}
ANSWERING = frozenset((*_OPERATIONS, "/v1/prefixes"))  # paths that compute something for their caller
_CLAIMS = {b"x-headrace-tenant", b"x-headrace-key", b"x-headrace-namespace", b"x-tenant", b"x-tenant-id"}
_log = logging.getLogger(__name__)


class Access:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, state: ApiState) -> None:
        self._app = app
        self._clock = state.clock
        self._gatekeeper = state.gatekeeper
        self._metrics = state.door
        self._tracer = state.tracer
        self._auditor = state.auditor
        self._note_refused = state.note_refused
        self._wall_s = state.wall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._strip_claims(scope)
        _accept_anthropic_key(scope)
        headers = Headers(scope=scope)
        request_id = _safe(headers.get("x-request-id")) or random_id()
        correlation_id = _safe(headers.get("x-correlation-id"))
        span = self._begin_span(scope, headers, request_id)
        scope.setdefault("state", {})["request_id"] = request_id
        scope["state"]["span"] = span
        start_s = self._clock.now()
        status = 0
        trail = self._begin_trail(scope, request_id)

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode())]
                if correlation_id is not None:
                    extra.append((b"x-correlation-id", correlation_id.encode()))
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        tag = tag_logs(LogTag(request_id, "" if span is None else span.trace_id))
        try:
            try:
                with stage(span, "auth"):
                    caller = await self._identify(scope["path"], headers)
                scope["state"]["caller"] = caller = msgspec.structs.replace(caller, task=_task(headers))
                if trail is not None:
                    trail.caller = caller
            except HeadraceError as refusal:
                self._metrics.on_refused(refusal)
                if scope["path"] in ANSWERING:
                    self._note_refused(Caller(), "", refusal)
                if trail is not None:
                    trail.fail(refusal)
                await error_response(refusal, request_id, scope["path"])(scope, receive, tell)
                return
            await self._app(scope, receive, tell)
        finally:
            if trail is not None:
                trail.answered(status)
                trail.release(int(self._wall_s() * 1e9))
            level = logging.DEBUG if scope["path"] in _POLLED else logging.INFO
            elapsed_ms = (self._clock.now() - start_s) * 1e3
            method, path = scope["method"], scope["path"]
            fields = {
                "method": method,
                "path": path,
                "status": status,
                "duration_ms": round(elapsed_ms, 3),
                "request_id": request_id,
            }
            line = "%s %s %s %.0f ms id=%s"
            _log.log(level, line, method, path, status, elapsed_ms, request_id, extra={"fields": fields})
            untag_logs(tag)
            if span is not None:
                span.note({"http.response.status_code": status})
                span.end(is_error=status >= 500 or not status)

    def _begin_span(self, scope: Scope, headers: Headers, request_id: str) -> Span | None:
        """Begin the trace of a call that asks a model; None for other calls and where tracing is off."""
        operation = None if self._tracer is None else _OPERATIONS.get(scope["path"])
        if self._tracer is None or operation is None:
            return None
        method, path = scope["method"], scope["path"]
        span = self._tracer.begin(f"{method} {path}", operation, headers)
        span.note({"http.request.method": method, "url.path": path, "headrace.request_id": request_id})
        return span

    async def _identify(self, path: str, headers: Headers) -> Caller:
        if path in _OPEN:
            return Caller()
        if self._auditor is not None:
            self._auditor.check()
        return await self._gatekeeper.identify(path, headers)

    def _begin_trail(self, scope: Scope, request_id: str) -> Trail | None:
        if self._auditor is None:
            return None
        trail = Trail(self._auditor, scope["method"], scope["path"], request_id, int(self._wall_s() * 1e9))
        scope["state"]["trail"] = trail
        return trail

    def _strip_claims(self, scope: Scope) -> None:
        """Remove headers by which a caller names a tenant; its key alone does that."""
        claims = [name for name, _ in scope["headers"] if name in _CLAIMS]
        if claims:
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in _CLAIMS]
            for name in claims:
                self._metrics.on_stripped(name.decode())


def _accept_anthropic_key(scope: Scope) -> None:
    """Read `x-api-key`, where the Anthropic wire carries its key, as the bearer key it is."""
    names = [name for name, _ in scope["headers"]]
    if b"x-api-key" in names:
        bearers = [(b"authorization", b"Bearer " + key) for name, key in scope["headers"] if name == b"x-api-key"]
        kept = [pair for pair in scope["headers"] if pair[0] != b"x-api-key"]
        scope["headers"] = kept if b"authorization" in names else [*kept, bearers[0]]


def _safe(value: str | None) -> str | None:
    """Return an id that may go into headers and logs, or None."""
    return value if value is not None and _SAFE_ID.fullmatch(value) else None


def _task(headers: Headers) -> str:
    """Return the caller's own name for what it is doing. Raises InvalidRequest."""
    task = headers.get("x-task-id", "")
    if task and not _SAFE_ID.fullmatch(task):
        raise InvalidRequest(
            f"X-Task-Id has {len(task)} characters; it must be 1 to 128 printable ones without spaces",
            param="X-Task-Id",
        )
    return task
