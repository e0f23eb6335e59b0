"""What the ledger keeps of an engine: how it was built, and stretches of its life with whose time they were.

Values only; the fields are named after the ledger's columns. Written by `gateway.ledger`, read by `econ.stack`.
"""

from __future__ import annotations

from typing import NamedTuple


class EngineBuild(NamedTuple):
    """How an engine was built.

    weights    how they are kept, `auto`: as they were stored
    kv_tokens  how many the pool of `kv_bytes` holds
    """

    backend: str
    weights: str
    kv_dtype: str
    machine: str
    threads: int
    num_weights: int
    weight_bytes: int
    kv_bytes: int
    kv_tokens: int
    max_num_seqs: int


class EngineSpan(NamedTuple):
    """A stretch of an engine's life that has been booked. `requests_ns` is claimed by requests, the rest is the pool's.

    engine       of this life of the engine; another start is another one
    from_ns      Unix time; so is until_ns
    pool_nano    what loading, recomputed, abandoned and idle time cost
    cached_ns    set aside for cached prefixes, less what requests have paid of it: negative when they paid for time
                 that earlier spans had set aside; cached_nano is what it cost
    """

    id: str
    engine: str
    model: str
    from_ns: int
    until_ns: int
    total_ns: int
    loading_ns: int
    requests_ns: int
    recomputed_ns: int
    abandoned_ns: int
    idle_ns: int
    pool_nano: int | None
    nano_per_hour: int | None
    rate_source: str | None
    cached_ns: int = 0
    cached_nano: int | None = None

    @property
    def busy_ns(self) -> int:
        """Return the time in which steps were made, useful or not, and what was paid for cached tokens."""
        return self.requests_ns + self.recomputed_ns + self.abandoned_ns
