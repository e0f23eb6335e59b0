"""How often: requests, tokens, calls at a time and steps of a task, by key, tenant and model."""

from headrace.gateway.limits.rules import LimitRule, What

__all__ = ["LimitRule", "What"]
