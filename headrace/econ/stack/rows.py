"""What the audit reads: an ended request, a price to compare, and all that was read of a period.

Values only; the fields are named after the ledger's columns. Read from the database by `gateway.ledger.stack_rows`.
None is what the ledger does not know: rows from before a column existed, machines without a rate.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.econ.engines import EngineBuild, EngineSpan

# How the ledger writes the beginnings of a prompt: DIGITS digits for the first 64 tokens, as many for 128, …
PREFIX_LEVELS = (64, 128, 256, 512, 1024, 2048, 4096)
PREFIX_DIGITS = 10
PARTS = ("admission", "queue", "prefill", "decode", "upstream", "reading")


class RequestRow(NamedTuple):
    """One settled request."""

    settled_ns: int
    tenant: str
    model: str
    outcome: str
    input_uncached: int
    cache_read: int
    cache_write: int
    cache_write_1h: int
    output_text: int
    output_reasoning: int
    engine_ns: int
    machine_nano: int | None
    cost_nano: int | None
    reported_nano: int | None
    engine: str | None
    prompt_ns: int
    rent_ns: int
    rent_nano: int | None
    cached_nano: int | None
    output_nano: int | None
    admission_ns: int | None
    queue_ns: int | None
    prefill_ns: int | None
    decode_ns: int | None
    upstream_ns: int | None
    reading_ns: int | None
    ttft_ns: int | None
    num_preemptions: int
    is_stream: int | None
    is_repeatable: int | None
    most_output: int | None
    request_digest: str | None
    prefix_digests: str | None

    @property
    def remote_nano(self) -> int | None:
        """Return what a remote upstream charged, as it reported; else what the price says."""
        return self.cost_nano if self.reported_nano is None else self.reported_nano

    @property
    def fresh(self) -> int:
        """Return the prompt tokens that were computed or written to a cache."""
        return self.input_uncached + self.cache_write + self.cache_write_1h

    @property
    def output(self) -> int:
        """Return the tokens of the answer."""
        return self.output_text + self.output_reasoning

    @property
    def parts_ns(self) -> tuple[int, ...] | None:
        """Return where its time was, in the order of PARTS; None in rows from before."""
        parts = (
            *(self.admission_ns, self.queue_ns, self.prefill_ns),
            *(self.decode_ns, self.upstream_ns, self.reading_ns),
        )
        known = tuple(part for part in parts if part is not None)
        return known if len(known) == len(parts) else None


class ReferencePrice(NamedTuple):
    """What somebody else asks, in nano-dollars per million tokens."""

    name: str
    fresh: int
    cached: int
    output: int

    def nano(self, fresh: int, cached: int, output: int) -> int:
        """Return what these tokens would cost there, to the nano-dollar below."""
        return (fresh * self.fresh + cached * self.cached + output * self.output) // 10**6


class StepFit(NamedTuple):
    """What parts of a step cost in seconds: shared by all, a decode row, its context, a prompt token, its context."""

    shared: float
    per_row: float
    per_read: float
    per_token: float
    per_pair: float
    source: str


class Ledger(NamedTuple):
    """What was read of a period. `others_ns` is engine time of requests that a filter left out, by engine."""

    since_ns: int
    until_ns: int
    requests: list[RequestRow]
    spans: list[EngineSpan]
    builds: dict[str, EngineBuild]
    others_ns: dict[str, int]
