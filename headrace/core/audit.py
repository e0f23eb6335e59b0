"""What the audit log is told: who asked what when, what was decided, what came of it. Values and a seam.

Owns the names of the columns and the few words for decisions. Made by `api/` at the end of every call and by the
gateway for changes; kept by `gateway.audit`.
Invariant: no content and no secret is in an event. Content, where it is wanted, goes beside it as `AuditContent`.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Protocol

import msgspec

from headrace.core.errors import HeadraceError

Kind = Literal["call", "change", "retention", "hold", "release", "lost", "alarm"]
Decision = Literal["allowed", "refused", "failed"]

_REASONS = {
    "invalid_api_key": "auth",
    "rate_limit_exceeded": "limit",
    "task_exhausted": "limit",
    "budget_exceeded": "budget",
    "model_not_found": "model",
    "unsupported_model": "model",
    "overloaded": "overload",
    "deadline_unreachable": "overload",
    "deadline_expired": "overload",
    "model_loading": "overload",
    "engine_busy": "overload",
    "upstream_unavailable": "overload",
    "store_unavailable": "store",
    "request_cancelled": "cancelled",
}


Detail = Annotated[object, msgspec.Meta(extra_json_schema={"description": "what was there before and after"})]


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened. Fields that do not apply keep their defaults.

    at_ns     when it began, Unix time
    actor     who changed something, where no key did: cli/USER, or gateway
    path      of the call, without its query
    decision  allowed, refused (the caller's fault or the server's limits), failed (the server's fault)
    reason    why not: auth, permission, model, limit, budget, overload, store, request, cancelled, failure
    code      of the error that the caller was told
    finish    how each choice ended, by index, joined by commas
    upstream  which remote upstreams answered, joined by commas; empty: an engine of this process, or none
    degraded  what the caller got less of, and why
    requests  that the call made of its model
    cost_nano nano-dollars that the caller is charged; None: the price is not known, or nothing was asked of a model
    detail    of a change: what was asked for; of the log's own rows: what it did
    """

    at_ns: int
    kind: Kind = "call"
    actor: str = ""
    tenant: str = ""
    key_id: str = ""
    role: str = ""
    task: str = ""
    request_id: str = ""
    method: str = ""
    path: str = ""
    model: str = ""
    action: str = ""
    target: str = ""
    decision: Decision = "allowed"
    reason: str = ""
    code: str = ""
    status: int = 0
    finish: str = ""
    upstream: str = ""
    degraded: str = ""
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    is_estimate: bool = False
    cost_nano: int | None = None
    duration_us: int = 0
    detail: Detail = None


class AuditContent(msgspec.Struct, frozen=True, kw_only=True):
    """What was said in a call: the body as it came, the answer's text. Cut at the auditor's `content_limit`."""

    request: str
    answer: str
    is_cut: bool = False


class Settled(NamedTuple):
    """What a request came to, as the ledger has it."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    is_estimate: bool
    cost_nano: int | None


class Auditor(Protocol):
    """Keeps events. Never waits."""

    content_limit: int  # bytes of a request and of an answer to hand over; 0: no content

    def wants(self, method: str, path: str, decision: Decision) -> bool:
        """Say whether such a call leaves an event."""
        ...

    def check(self) -> None:
        """Raise StoreUnavailable if calls must not go on because they would leave no trace."""
        ...

    def settled(self, request_id: str) -> Settled | None:
        """Return what a request came to, once; None if nobody keeps accounts of it."""
        ...

    def record(self, event: AuditEvent, content: AuditContent | None = None) -> None:
        """Keep an event."""
        ...


def reason_of(error: HeadraceError) -> str:
    """Put an error under the few words that the log knows."""
    known = _REASONS.get(error.code)
    if known is not None:
        return known
    if error.code == "forbidden":
        return "model" if error.param == "model" else "permission"
    return "failure" if error.http_status >= 500 else "request"


def decision_of(error: HeadraceError) -> Decision:
    """Say whether an error refuses a caller or fails it."""
    return "failed" if reason_of(error) == "failure" else "refused"
