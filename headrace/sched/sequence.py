"""One sequence: one choice of a request on its way through the engine.

Owned by the scheduler: its parts alone write these fields after construction; others keep the id. `tokens` only ever
grows, but for a beam that takes another's place.
Invariant, once running: num_computed ≤ len(tokens) ≤ max_len and num_computed ≤ len(blocks) * block_size; while its
last token is still to be told, and the one after is computed already, num_computed is len(tokens) + 1.

    tokens:  |<------- prompt_len ------->|<--- output --->|
             |<-- num_computed: KV is or is being written -->|<-- still to compute -->|

There is no prefill phase and no decode phase: a step computes some of what is still to compute, and samples when it
reaches the end. A preempted sequence goes back to what the prefix cache still holds of it and catches up over prompt
and output alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING

import msgspec

from headrace.core.delta import FinishReason
from headrace.core.request import Reach, SamplingParams, SeqId, WantedReach
from headrace.core.step import Sample, ScoredPosition
from headrace.kv import Node, pack_tokens
from headrace.kv.tiers import Late
from headrace.sched.fairness import Account

if TYPE_CHECKING:
    from headrace.sched.beams import BeamGroup


class SequenceStatus(IntEnum):
    """Where a sequence is. FINISHED is final; its blocks may outlive it until the step in flight has ended.

    PARKED is a beam whose group waits, or has come to its end around it; one that runs without tokens waits for the
    first of its group to read the prompt.
    """

    WAITING = 0
    RUNNING = 1
    FINISHED = 2
    PARKED = 3


class SequenceTiming(msgspec.Struct, frozen=True, gc=False):
    """When a sequence got where, in clock seconds; None where it never got there."""

    first_scheduled_s: float | None
    first_token_s: float | None
    num_preemptions: int
    num_cached: int = 0  # prompt tokens found in the prefix cache
    late: Late | None = None  # what it has waited for below the pool in vain


class Urgency(msgspec.Struct, frozen=True, kw_only=True):
    """What decides when a sequence's turn comes; see `sched.queue`.

    tenant         whose fair share it is charged to
    priority       class; lower goes first
    is_background  takes only what the others leave
    deadline_s     clock time at which its first token comes too late; None: never
    """

    tenant: str = ""
    priority: int = 0
    is_background: bool = False
    deadline_s: float | None = None


_ORDINARY = Urgency()
_NOBODY = Account("", 1.0)


class Sequence:
    """State of one choice. Written by the scheduler's parts only."""

    __slots__ = (
        "account",
        "banned",
        "beams",
        "blocks",
        "capacity",
        "charge",
        "deadline_s",
        "filling",
        "first_scheduled_s",
        "first_token_s",
        "is_background",
        "is_paused",
        "late",
        "max_blocks",
        "max_len",
        "max_tokens",
        "min_tokens",
        "namespace",
        "needs_history",
        "needs_host",
        "next_publish",
        "node",
        "num_cached",
        "num_computed",
        "num_deferrals",
        "num_evicted",
        "num_in_flight",
        "num_preemptions",
        "num_score_top",
        "num_scored",
        "num_seen",
        "num_shareable",
        "num_shared",
        "peak_computed",
        "pin_s",
        "predicted_s",
        "priority",
        "prompt_key",
        "prompt_len",
        "queued_s",
        "rank",
        "reach",
        "sampling",
        "scored",
        "seq_id",
        "status",
        "stop_token_ids",
        "table",
        "tenant",
        "tokens",
        "wanted_reach",
    )

    def __init__(
        self,
        seq_id: SeqId,
        prompt: Iterable[int],
        sampling: SamplingParams,
        *,
        max_tokens: int,
        stop_token_ids: frozenset[int] = frozenset(),
        prompt_logprobs: int | None = None,
        namespace: str = "",
        pin_s: float = 0.0,
        reach: WantedReach | None = None,
        urgency: Urgency = _ORDINARY,
    ) -> None:
        self.seq_id = seq_id
        self.tokens: list[int] = list(prompt)
        self.prompt_key = pack_tokens(self.tokens)
        self.namespace = namespace
        self.pin_s = pin_s  # how long the prompt is kept in the prefix cache after it; 0: no longer than others
        self.tenant = urgency.tenant
        self.priority = urgency.priority
        self.is_background = urgency.is_background
        self.deadline_s = urgency.deadline_s
        self.prompt_len = len(self.tokens)
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.max_len = self.prompt_len + max_tokens  # the scheduler lowers it to its context at submit
        self.stop_token_ids = stop_token_ids
        self.min_tokens = sampling.min_tokens
        self.banned = tuple(sorted(stop_token_ids)) if sampling.min_tokens > 0 else ()
        self.needs_history = sampling.needs_history
        self.needs_host = sampling.needs_host
        self.num_score_top = prompt_logprobs
        self.num_scored = 0
        self.scored: list[ScoredPosition] = []  # of prompt positions 1, 2, … in order, until they are handed out

        self.beams: BeamGroup | None = None  # set at submission for the beams of one search

        self.status = SequenceStatus.WAITING
        self.is_paused = False  # written by `sched.paused`
        self.num_computed = 0
        self.peak_computed = 0  # the most it ever was; less than that is computed again
        self.num_in_flight = 0  # launched steps that have not been committed
        self.blocks: list[int] = []
        self.table: tuple[int, ...] = ()  # `blocks`, as rows carry it
        self.capacity = 0  # tokens that `blocks` hold, evicted ones counted as if they did

        # What its tokens attend to: as asked for, and as written at submit; see `sched.reaches`.
        self.wanted_reach = reach
        self.reach: Reach | None = None
        self.num_seen = sys.maxsize  # tokens that one attends to at most
        self.num_shareable = sys.maxsize  # tokens whose KV the prefix cache may give or take
        self.max_blocks = sys.maxsize  # blocks it holds at a time
        self.num_evicted = 0  # blocks that have left the table behind those of the sinks

        # Written by `sched.prefixes`: how far the blocks are in the prefix cache.
        self.node: Node | None = None  # last cached block: of those held when running, of those to be had when waiting
        self.next_publish = sys.maxsize  # verified tokens at which one more block can be published
        self.filling: Node | str | None = None  # where others wait for this one's next block
        self.num_cached = 0  # prompt tokens found in the cache at the first admission
        self.late: Late | None = None  # what it has waited for below the pool in vain; written by `sched.tiering`
        self.num_shared = 0  # blocks taken from the cache at the last admission
        self.num_deferrals = 0  # steps spent waiting for another sequence to fill the cache

        # Written by the scheduler's parts for `sched.queue` and `sched.fairness`.
        self.account: Account = _NOBODY
        self.charge = 0.0  # tokens that its tenant has been charged with; `sched.charges`
        self.rank = 0.0  # due time minus the prefix bonus, of the last look
        self.predicted_s: float | None = None  # to the first token, as `sched.outlook` saw it at the door
        self.queued_s = 0.0
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.num_preemptions = 0

    @property
    def num_output(self) -> int:
        """Count the tokens generated so far."""
        return len(self.tokens) - self.prompt_len

    @property
    def num_beams(self) -> int:
        """Count the sequences that run when this one does."""
        return 1 if self.beams is None else len(self.beams.members)

    def timing(self) -> SequenceTiming:
        """Return how far it has got until now."""
        return SequenceTiming(
            self.first_scheduled_s, self.first_token_s, self.num_preemptions, self.num_cached, self.late
        )


class SequenceEvent(msgspec.Struct, frozen=True, gc=False):
    """Something that happened to one sequence. The last of each sequence, and only that, has `finish`.

    sample      the new token; None when the sequence ended without one
    stop_token  the end token that finished it; it is also in `sample`
    error       why, when `finish` is ERROR or EXPIRED
    scored      log probabilities of prompt positions 1, 2, …, with the first event, when asked for
    timing      with the first token and at the end
    tokens      the whole answer of a search, with `finish`; then `sample` is None
    """

    seq_id: SeqId
    sample: Sample | None
    finish: FinishReason | None = None
    stop_token: int | None = None
    error: str | None = None
    scored: tuple[ScoredPosition, ...] = ()
    timing: SequenceTiming | None = None
    tokens: tuple[int, ...] = ()
