"""What is known of one HTTP call so far, for the audit log.

Owns the counts of one call. Several hold it: the connection, and the generating call behind it, which may outlive the
connection; when the last one lets go, the event is handed to the auditor, once.
Invariant: content is gathered only up to the auditor's limit, and not at all without one; keys never get here.
"""

from __future__ import annotations

import re

from headrace.core.audit import AuditContent, AuditEvent, Auditor, Decision, Settled, decision_of, reason_of
from headrace.core.caller import Caller
from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import Forbidden, HeadraceError, Unauthorized
from headrace.core.request import Request

_MOST_CHARS = 256
_KEYS = re.compile(r"hra?-[A-Za-z0-9_-]{12,}")  # somebody's key in a path
_TOLD = {"x-headrace-upstream": "upstream"}


class Trail:
    """One call's record in the making."""

    def __init__(self, auditor: Auditor, method: str, path: str, request_id: str, at_ns: int) -> None:
        self._auditor = auditor
        self._method = method
        self._path = path
        self._request_id = request_id
        self._at_ns = at_ns
        self._num_holders = 1
        self._status = 0
        self._error: HeadraceError | None = None
        self._models: dict[str, None] = {}
        self._finishes: list[str] = []
        self._num_open = 0
        self._request_ids: list[str] = []
        self._usages: list[Settled] = []
        self._told: dict[str, dict[str, None]] = {}
        self._body = b""
        self._answer: list[str] = []
        self._num_kept = 0
        self._is_cut = False
        self.caller = Caller()

    def hold(self) -> Trail:
        """Keep it open for one more holder."""
        self._num_holders += 1
        return self

    def release(self, now_ns: int) -> None:
        """Let go of it; the last one hands the event over."""
        self._num_holders -= 1
        if self._num_holders:
            return
        event = self._event(now_ns)
        if self._auditor.wants(self._method, self._path, event.decision):
            self._auditor.record(event, self._content())

    def answered(self, status: int) -> None:
        """Note the status of the HTTP reply; 0 if nobody was there any more."""
        self._status = status

    def fail(self, error: Exception) -> None:
        """Note what the caller is told. The first error is the cause."""
        if self._error is None:
            self._error = error if isinstance(error, HeadraceError) else HeadraceError("internal")

    def begin_anew(self, degraded: str) -> None:
        """Forget how the try before ended; note what the caller gets less of, if anything."""
        self._told = {"degraded": {degraded: None}} if degraded else {}
        self._error, self._num_open = None, 0
        self._finishes.clear()

    def read(self, body: bytes) -> None:
        """Note the body."""
        self._body = body[: self._auditor.content_limit]
        self._is_cut = len(body) > len(self._body)

    def aim(self, model: str) -> None:
        """Note which model is wanted."""
        self._models[model] = None

    def ask(self, request: Request) -> None:
        """Note a request to a model."""
        self._request_ids.append(request.request_id)
        self._num_open += request.n

    def see(self, delta: Delta) -> None:
        """Note a delta that goes to the caller."""
        if delta.finish is not None:
            self._finishes.append(delta.finish.value)
            self._num_open -= 1
        if delta.usage is not None:
            self._usages.append(_settled(delta.usage))
        for name, value in delta.headers:
            if name in _TOLD:
                self._told.setdefault(_TOLD[name], {})[value] = None
        if self._auditor.content_limit and delta.has_words:
            self._keep(delta)

    def _keep(self, delta: Delta) -> None:
        calls = "".join(call.name + call.arguments for call in delta.tool_calls)
        text = delta.reasoning + delta.text + delta.refusal + calls
        room = self._auditor.content_limit - self._num_kept
        if len(text) > room:
            self._is_cut = True
        if room > 0:
            self._answer.append(text[:room])
            self._num_kept += len(text)

    def _event(self, now_ns: int) -> AuditEvent:
        decision, reason, code = self._decision()
        booked = [self._auditor.settled(request_id) for request_id in self._request_ids]
        usages = [each for each in booked if each is not None] or self._usages
        costs = [usage.cost_nano for usage in usages if usage.cost_nano is not None]
        caller, error = self.caller, self._error
        key_id, tenant = caller.key_id, caller.tenant
        if isinstance(error, Unauthorized):
            key_id = error.key_id
        elif isinstance(error, Forbidden) and not key_id:
            key_id, tenant = error.key_id, error.tenant
        return AuditEvent(
            at_ns=self._at_ns,
            tenant=tenant,
            key_id=key_id,
            role=caller.role,
            task=caller.task,
            request_id=self._request_id,
            method=self._method[:16],
            path=_KEYS.sub("(hidden)", self._path[:_MOST_CHARS]),
            model=",".join(self._models)[:_MOST_CHARS],
            decision=decision,
            reason=reason,
            code=code,
            status=self._status,
            finish=",".join([*self._finishes, *[FinishReason.ABORT.value] * self._num_open]),
            upstream=",".join(self._told.get("upstream", ())),
            degraded=",".join(self._told.get("degraded", ())),
            requests=len(self._request_ids),
            input_tokens=sum(usage.input_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in usages),
            output_tokens=sum(usage.output_tokens for usage in usages),
            is_estimate=any(usage.is_estimate for usage in usages),
            cost_nano=sum(costs) if costs and len(costs) == len(usages) else None,
            duration_us=max(0, now_ns - self._at_ns) // 1_000,
        )

    def _decision(self) -> tuple[Decision, str, str]:
        if self._error is not None:
            return decision_of(self._error), reason_of(self._error), self._error.code
        if FinishReason.EXPIRED.value in self._finishes:
            return "refused", "overload", "deadline_expired"
        if FinishReason.ERROR.value in self._finishes:
            return "failed", "failure", ""
        if self._status >= 400:
            return ("failed", "failure", "") if self._status >= 500 else ("refused", "request", "")
        return "allowed", "", ""

    def _content(self) -> AuditContent | None:
        if not self._auditor.content_limit or not (self._body or self._answer):
            return None
        request = self._body.decode("utf-8", "replace")
        return AuditContent(request=request, answer="".join(self._answer), is_cut=self._is_cut)


def _settled(usage: Usage) -> Settled:
    return Settled(
        usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.is_estimate, usage.cost_nano
    )
