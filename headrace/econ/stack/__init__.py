"""The audit of a stack: what was paid for, what was used, what made requests slow, what would be cheaper."""

from headrace.econ.stack.audit import StackAudit, audit
from headrace.econ.stack.rows import BuildRow, Ledger, ReferencePrice, RequestRow, SpanRow, StepFit

__all__ = ["BuildRow", "Ledger", "ReferencePrice", "RequestRow", "SpanRow", "StackAudit", "StepFit", "audit"]
