"""Which counts of tokens an upstream may tell. Pure.

A count below zero or beyond all bounds is nonsense, and nobody is charged by it: the usage is then estimated as if none
had been told.
"""

from __future__ import annotations

from headrace.core.delta import Usage

MOST_TOKENS = 1 << 31


def sensible(usage: Usage) -> Usage | None:
    """Return the usage; None if it cannot be."""
    counts = (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.cache_write_1h_tokens,
        usage.reasoning_tokens,
    )
    return usage if min(counts) >= 0 and max(counts) <= MOST_TOKENS else None
