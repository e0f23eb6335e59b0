"""The audit log: who asked what when, what was decided and what it cost, in a chain that shows every change."""

from headrace.gateway.audit.chain import AuditRow, Chain
from headrace.gateway.audit.journal import Journal
from headrace.gateway.audit.keys import KeyRing
from headrace.gateway.audit.writer import AuditWriter

__all__ = ["AuditRow", "AuditWriter", "Chain", "Journal", "KeyRing"]
