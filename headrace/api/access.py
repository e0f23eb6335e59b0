"""What every HTTP call gets before routing: a request id, a caller, a trace, an audit trail, a line in the access log.

Owns: the headers `x-request-id` (echoed or made) and `x-correlation-id` (echoed), and the removal of headers by which
a caller tries to name its own tenant.
Invariant: keys are never logged; nor are bodies. The plain health endpoints need no key.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.api.errors import error_response
from headrace.api.state import ApiState
from headrace.api.trail import Trail
from headrace.api.visit import HeaderMap, Visit
from headrace.core.caller import Caller
from headrace.core.errors import HeadraceError, InvalidRequest
from headrace.core.random_ids import random_id
from headrace.core.tracing import Span, stage
from headrace.obs import LogTag, PlainRecord, tag_logs, untag_logs

_SAFE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_OPEN = ("/health", "/health/live", "/health/ready")  # `/health/progress` names requests and needs the key
_POLLED = ("/metrics", "/health", "/health/ready", "/health/live", "/health/progress", "/health/upstreams")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
}
ANSWERING = frozenset((*_OPERATIONS, "/v1/prefixes"))  # paths that compute something for their caller
_CLAIMS = frozenset({b"x-headrace-tenant", b"x-headrace-key", b"x-headrace-namespace", b"x-tenant", b"x-tenant-id"})
_log = logging.getLogger(__name__)


class Access:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, state: ApiState) -> None:
        self._app = app
        self._state = state
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
        start_s = self._clock.now()
        headers = self._read_headers(scope)
        request_id = _safe(headers.raw.get(b"x-request-id")) or random_id()
        added = [(b"x-request-id", request_id.encode())]
        correlation_id = _safe(headers.raw.get(b"x-correlation-id"))
        if correlation_id is not None:
            added.append((b"x-correlation-id", correlation_id.encode()))
        visit = Visit(self._state, scope, receive, headers, request_id)
        visit.span = span = self._begin_span(visit)
        visit.trail = trail = self._begin_trail(visit)
        known = scope.setdefault("state", {})
        known["visit"], known["request_id"] = visit, request_id

        def tell(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *added]
            return send(message)

        tag = tag_logs(LogTag(request_id, "" if span is None else span.trace_id))
        try:
            try:
                known["caller"] = visit.caller = await self._identify(visit)
                if trail is not None:
                    trail.caller = visit.caller
            except HeadraceError as refusal:
                self._metrics.on_refused(refusal)
                if visit.path in ANSWERING:
                    self._note_refused(Caller(), "", refusal)
                if trail is not None:
                    trail.fail(refusal)
                await error_response(refusal, request_id, visit.path)(scope, receive, tell)
                return
            await self._app(scope, receive, tell)
        finally:
            status = visit.status
            if trail is not None:
                trail.answered(status)
                trail.release(int(self._wall_s() * 1e9))
            self._write_line(visit, (self._clock.now() - start_s) * 1e3)
            untag_logs(tag)
            if span is not None:
                span.note({"http.response.status_code": status})
                span.end(is_error=status >= 500 or not status)
            del known["visit"]  # each names the other: nothing of a call is left to the collector

    def _write_line(self, visit: Visit, elapsed_ms: float) -> None:
        """Write the access log's line."""
        level = logging.DEBUG if visit.path in _POLLED else logging.INFO
        if not _log.isEnabledFor(level):
            return
        method, path, status, request_id = visit.method, visit.path, visit.status, visit.request_id
        fields: dict[str, object] = {
            "method": method,
            "path": path,
            "status": status,
            "duration_ms": round(elapsed_ms, 3),
            "request_id": request_id,
        }
        line = f"{method} {path} {status} {elapsed_ms:.0f} ms id={request_id}"
        _log.handle(PlainRecord(_log.name, level, line, fields))

    def _begin_span(self, visit: Visit) -> Span | None:
        """Begin the trace of a call that asks a model; None for other calls and where tracing is off."""
        operation = None if self._tracer is None else _OPERATIONS.get(visit.path)
        if self._tracer is None or operation is None:
            return None
        method, path = visit.method, visit.path
        span = self._tracer.begin(f"{method} {path}", operation, visit.headers)
        span.note({"http.request.method": method, "url.path": path, "headrace.request_id": visit.request_id})
        return span

    async def _identify(self, visit: Visit) -> Caller:
        """Return who calls, and for which job. Raises what the gatekeeper raises, or InvalidRequest."""
        with stage(visit.span, "auth"):
            caller = await self._find_caller(visit)
        task = _task(visit.headers.raw.get(b"x-task-id"))
        return msgspec.structs.replace(caller, task=task) if task else caller

    async def _find_caller(self, visit: Visit) -> Caller:
        if visit.path in _OPEN:
            return Caller()
        if self._auditor is not None:
            self._auditor.check()
        return await self._gatekeeper.identify(visit.path, visit.headers)

    def _begin_trail(self, visit: Visit) -> Trail | None:
        if self._auditor is None:
            return None
        return Trail(self._auditor, visit.method, visit.path, visit.request_id, int(self._wall_s() * 1e9))

    def _read_headers(self, scope: Scope) -> HeaderMap:
        """Return the headers, after what must not be believed was taken off and what is spelled otherwise put right."""
        headers = HeaderMap(scope["headers"])
        if not _CLAIMS.isdisjoint(headers.raw):
            self._strip_claims(scope)
            headers = HeaderMap(scope["headers"])
        if b"x-api-key" in headers.raw:
            _accept_anthropic_key(scope)
            headers = HeaderMap(scope["headers"])
        return headers

    def _strip_claims(self, scope: Scope) -> None:
        """Remove headers by which a caller names a tenant; its key alone does that."""
        for name, _ in scope["headers"]:
            if name in _CLAIMS:
                self._metrics.on_stripped(name.decode())
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in _CLAIMS]


def _accept_anthropic_key(scope: Scope) -> None:
    """Read `x-api-key`, where the Anthropic wire carries its key, as the bearer key it is."""
    names = [name for name, _ in scope["headers"]]
    bearers = [(b"authorization", b"Bearer " + key) for name, key in scope["headers"] if name == b"x-api-key"]
    kept = [pair for pair in scope["headers"] if pair[0] != b"x-api-key"]
    scope["headers"] = kept if b"authorization" in names else [*kept, bearers[0]]


def _safe(value: bytes | None) -> str | None:
    """Return an id that may go into headers and logs, or None."""
    return value.decode("ascii") if value is not None and _SAFE_ID.fullmatch(value) else None


def _task(value: bytes | None) -> str:
    """Return the caller's own name for what it is doing. Raises InvalidRequest."""
    if not value:
        return ""
    task = _safe(value)
    if task is None:
        raise InvalidRequest(
            f"X-Task-Id has {len(value)} characters; it must be 1 to 128 printable ones without spaces",
            param="X-Task-Id",
        )
    return task
