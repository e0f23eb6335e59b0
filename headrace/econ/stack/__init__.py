"""The audit of a stack: what was paid for, what was used, what made requests slow, what would be cheaper."""

from headrace.econ.stack.audit import StackAudit, audit
from headrace.econ.stack.rows import Ledger, ReferencePrice, RequestRow, StepFit

__all__ = ["Ledger", "ReferencePrice", "RequestRow", "StackAudit", "StepFit", "audit"]
