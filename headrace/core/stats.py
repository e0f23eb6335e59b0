"""What an engine tells about itself: numbers for metrics and health, and the seam they are told through.

Values only. Made by `engine/`, read by `obs/`, `api/` and `bench/`. Times are `Clock.now()` seconds of one clock.
Invariant: `on_finished` is called exactly once for each accepted request, however it ends.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from headrace.core.delta import FinishReason
from headrace.core.errors import HeadraceError
from headrace.core.request import RequestId


class RequestStats(msgspec.Struct, frozen=True, kw_only=True):
    """One request's life, all its choices. A time is None where the request never got that far."""

    request_id: RequestId
    model: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    finishes: tuple[FinishReason, ...]  # one per choice, by index
    arrival_s: float
    first_scheduled_s: float | None
    first_token_s: float | None
    finished_s: float
    num_preemptions: int
    tenant: str = ""  # whose request it was; empty where there are no tenants
    engine_ns: int = 0  # of the engine's time, charged to the request
    prompt_ns: int = 0  # of that: for computing its prompt
    rent_ns: int = 0  # of that: for the cached tokens it used
    paused_s: float = 0.0  # not computed, since nobody read what was there
    longest_tokens: int | None = None  # completion tokens of the longest choice; None where only their sum is known
    max_tokens: int | None = None  # that a choice might have had; None where an upstream decides
    late_places: tuple[str, ...] = ()  # places for KV blocks that it has waited for in vain
    late_s: float = 0.0  # how long


class StepStats(msgspec.Struct, frozen=True, kw_only=True):
    """One step: rows and tokens computed, tokens sampled, seconds on the device and in the loop, when it was begun."""

    num_rows: int
    num_tokens: int
    num_sampled: int
    device_s: float
    loop_s: float
    began_s: float = 0.0


class EngineTime(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine's time went, in nanoseconds; the parts add up to `total_ns` exactly.

    loading     until it was ready
    requests    charged to requests, those that have not ended included
    recomputed  computed again after preemptions: the server's own doing
    abandoned   computed for requests that had ended meanwhile
    idle        no step was being made
    cached      rent of cached prefixes at rest that nobody has paid: not used yet, or given up unused
    rent        of `requests`: such rent that was paid by the request that used the prefix next
    """

    total_ns: int
    loading_ns: int = 0
    requests_ns: int = 0
    recomputed_ns: int = 0
    abandoned_ns: int = 0
    idle_ns: int = 0
    cached_ns: int = 0
    rent_ns: int = 0


class TierStats(msgspec.Struct, kw_only=True):
    """One place for KV blocks below the pool: host memory, a disk, a server. Counts are of blocks and only grow.

    num_hits      blocks that came back instead of being computed again
    num_misses    blocks that were asked for and not there
    num_skipped   blocks that were there, but computing them was predicted to be faster
    num_stored    blocks that were put there
    num_dropped   blocks that were to be put there and were not, for want of room or time
    num_corrupt   blocks that came back damaged and were thrown away
    num_errors    calls that failed, or lasted longer than `engine.kv_wait_s`
    num_late      requests that were computed because it had not answered in time
    """

    name: str
    is_up: bool = True
    is_full: bool = False  # what it has is read, and nothing new is stored
    silent_s: float = 0.0  # how long a call has lasted that lasts longer than it may; 0: there is none
    num_hits: int = 0
    num_misses: int = 0
    num_skipped: int = 0
    num_stored: int = 0
    num_dropped: int = 0
    num_corrupt: int = 0
    num_errors: int = 0
    num_late: int = 0
    stored_bytes: int = 0  # there now
    read_bytes: int = 0
    written_bytes: int = 0
    load_s: float = 0.0
    store_s: float = 0.0


_ADD_UP = (
    "num_running", "num_waiting", "num_steps", "num_preemptions", "num_swaps", "num_paused", "num_pauses",
    "prompt_tokens", "generated_tokens", "recomputed_tokens", "prefix_queries", "prefix_hits",
)  # fmt: skip


class EngineSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The engine at one moment. The counters only grow; `last_step_s` is None before the first step."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_steps: int
    num_preemptions: int
    prompt_tokens: int  # prompt tokens computed for the first time
    generated_tokens: int
    recomputed_tokens: int  # the tax of preemption
    last_step_s: float | None
    is_dead: bool
    num_cached_blocks: int = 0  # of the free ones: those that still hold a prefix
    prefix_queries: int = 0  # prompt tokens that were looked up in the prefix cache
    prefix_hits: int = 0  # and found there
    num_pinned_blocks: int = 0
    num_swaps: int = 0  # preemptions that kept their blocks in host memory
    tiers: tuple[TierStats, ...] = ()  # places for blocks below the pool, nearest first
    step_began_s: float | None = None  # when the step in flight was begun
    reserved_ratio: float = 0.0  # share of max_tokens that is kept free for running answers
    num_paused: int = 0  # sequences that wait for their readers
    num_pauses: int = 0
    phase: str = "idle"  # what the engine thread is doing: idle, warm, schedule, execute, commit
    time: EngineTime | None = None  # where its time went

    def after(self, before: EngineSnapshot) -> EngineSnapshot:
        """Return this engine's state with the counters, and the unfinished sequences, of the one before it added."""
        sums = {name: getattr(self, name) + getattr(before, name) for name in _ADD_UP}
        return msgspec.structs.replace(self, **sums)

    @property
    def kv_usage(self) -> float:
        """Return the share of KV blocks in use, 0 to 1."""
        return 1.0 - self.num_free_blocks / self.num_blocks

    @property
    def recompute_ratio(self) -> float:
        """Return the tokens computed again as a share of all computed tokens, 0 to 1."""
        total = self.prompt_tokens + self.generated_tokens + self.recomputed_tokens
        return self.recomputed_tokens / total if total else 0.0


class Observer(Protocol):
    """Is told what happens, on the network thread, after the tokens are on their way. Must not raise or block."""

    def on_step(self, stats: StepStats) -> None:
        """One step has ended."""
        ...

    def on_first_token(self, ttft_s: float) -> None:
        """The first token of a request came `ttft_s` after its arrival."""
        ...

    def on_next_token(self, gap_s: float) -> None:
        """A choice got one more token `gap_s` after its previous one."""
        ...

    def on_finished(self, stats: RequestStats) -> None:
        """An accepted request has ended."""
        ...

    def on_refused(self, error: HeadraceError) -> None:
        """A request was refused at the door."""
        ...


class AdmissionStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the accounts of a gateway have decided so far; `live`, `late` and `budget_used` are of this moment.

    allowances    that this gateway holds, of this moment
    drawn         requests that were granted out of them
    charged_nano  nano-dollars that callers were charged, by model
    budget_used   share of each budget that is spent, by its id
    """

    live: int
    late: int
    batches: int
    commands: int
    expired: int
    shadowed: int
    failures: int
    refused: dict[str, int]
    allowances: int = 0
    drawn: int = 0
    charged_nano: dict[str, int] = {}
    budget_used: dict[str, float] = {}


class AuditStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit log of this process has done so far; `waiting` is of this moment.

    written   rows
    lost      events that were given up
    refused   calls, because they could not have been recorded
    failures  transactions that did not come about
    """

    waiting: int
    written: int
    lost: int
    refused: int
    failures: int
