"""How a remote upstream is doing: what admin views and metrics show of it.

Values only. Made by `gateway.upstream`, read by `api/`, `obs/` and `cli/`. No secrets: keys appear as counts.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class BreakerState(StrEnum):
    """Whether requests are let through."""

    CLOSED = "closed"  # yes
    OPEN = "open"  # no: it failed too often; left alone for a while
    HALF_OPEN = "half_open"  # one at a time, to see


class UpstreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream at one moment. The counters only grow.

    outcomes          ended attempts by kind: ok, aborted, rejected, misplaced, dead_key, throttled, transient, busy
    ttft_s            smoothed time to the first delta; None before the first
    last_problem      words of the last failure, without content or keys
    key_problem       what the operator has to do about the keys, which no other failure pushes aside; None: nothing
    reported_nano     nano-dollars that it says its answers cost, as far as it says so
    uncounted         attempts whose usage it never told, because they broke off or were left; `uncounted_…`: their
                      tokens, estimated, and what those cost at the price that callers pay; `_unpriced` have none
    retry_after_s     seconds until the breaker lets a probe through; 0 unless it is open
    """

    name: str
    url: str
    profile: str
    models: tuple[str, ...]
    weight: float
    breaker: BreakerState
    retry_after_s: float
    in_flight: int
    max_parallel: int
    keys: int
    dead_keys: int
    throttled_keys: int
    ttft_s: float | None
    outcomes: dict[str, int]
    retries: int
    hedges: int
    resumed: int
    last_problem: str | None
    key_problem: str | None = None
    reported_nano: int = 0
    uncounted: int = 0
    uncounted_unpriced: int = 0
    uncounted_input_tokens: int = 0
    uncounted_output_tokens: int = 0
    uncounted_nano: int = 0
