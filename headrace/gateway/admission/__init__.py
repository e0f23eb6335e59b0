"""The one decision before a request begins: limits and budgets of all its scopes, together."""

from headrace.gateway.admission.authority import Authority, Grant
from headrace.gateway.admission.rulebook import Rulebook
from headrace.gateway.admission.stage import Admission

__all__ = ["Admission", "Authority", "Grant", "Rulebook"]
