"""Refusing what a remote server would not understand, by name and before anything is sent."""

from __future__ import annotations

from headrace.core.errors import UnsupportedParameter
from headrace.gateway.upstream.failure import Failure, Kind


def unsupported(name: str, upstream: str, profile: str) -> Failure:
    """Make the failure for a field; another upstream of the pool may understand it."""
    error = UnsupportedParameter(
        f"'{name}' is not understood by upstream '{upstream}' (profile {profile}); leave it out", param=name
    )
    return Failure(Kind.MISPLACED, error)
