"""`Step` and `StepResult`: the only words between deciding (sched) and doing (executor).

A Step is written by the scheduler, read by executor and simulator, never changed. It names blocks by number;
only the executor knows where their bytes are. Packed token order is row order: all tokens of row 0, then row 1, …

    row:   |<--- blocks hold KV of positions 0 … start-1 --->|<--- tokens: computed in this step --->|
    sampled when `sample` is set: one token, from the logits of the row's last token.

A row may be made before its token is known, while the step that samples it still runs: it is ahead. Whoever carries
steps out puts in what the step before has sampled for the same sequence; a step is never more than one ahead.

Bytes of whole blocks move as `copies`, in order, before any row reads or writes: in host slots a block waits for its
next use, and another thread may carry it on to a disk or another machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from headrace.core.request import Reach, SamplingParams, SeqId


class Row(msgspec.Struct, frozen=True, gc=False):
    """One sequence's part of a step.

    tokens      ids at positions start … start+len-1; at least one
    blocks      block numbers in position order; covers every position up to the last of `tokens` but those evicted
    sampling    None when the row only fills the cache (a prompt chunk that is not the last)
    num_output  output tokens before this step: the random counter, and what min_tokens looks at
    prompt_len  tokens of `history` that are prompt
    history     all tokens up to and including `tokens`; only when `sampling.needs_history`
    banned      token ids that may not be sampled now (end tokens before min_tokens)
    score       positions whose next-token logprobs are wanted, as offsets into `tokens` (prompt logprobs)
    num_score_top  alternatives per scored position
    num_again   tokens of the row, from its first on, that had been computed before a preemption
    reach       what the tokens attend to; None: all before them
    num_evicted blocks behind those of the sinks that are missing from `blocks`: nobody attends to them any more
    is_ahead    `tokens` is one 0 in place of what the step before samples for this sequence; if that failed, no
                result is expected of this row
    """

    seq_id: SeqId
    start: int
    tokens: Sequence[int]
    blocks: tuple[int, ...]
    sampling: SamplingParams | None
    num_output: int = 0
    prompt_len: int = 0
    history: Sequence[int] | None = None
    banned: tuple[int, ...] = ()
    score: tuple[tuple[int, int], ...] = ()  # (offset into tokens, the token id that follows it)
    num_score_top: int = 0
    num_again: int = 0
    reach: Reach | None = None
    num_evicted: int = 0
    is_ahead: bool = False


class CopyKind(IntEnum):
    """Between which places the bytes of a block are copied."""

    DUPLICATE = 0  # block → block
    SAVE = 1  # block → host slot
    LOAD = 2  # host slot → block


class BlockCopy(msgspec.Struct, frozen=True, gc=False):
    """Copy all bytes of one block. `source` and `target` number a block or a host slot, as `kind` says."""

    kind: CopyKind
    source: int
    target: int


class Step(msgspec.Struct, frozen=True):
    """What the device must do now. `step_id` counts up from 0 in an engine's life. There may be copies and no rows."""

    step_id: int
    rows: tuple[Row, ...]
    is_dry_run: bool = False  # warm-up: same path, result discarded
    copies: tuple[BlockCopy, ...] = ()  # done one after another before `rows` read or write

    @property
    def num_tokens(self) -> int:
        """Count the tokens computed in this step."""
        return sum([len(row.tokens) for row in self.rows])


class Sample(msgspec.Struct, frozen=True):
    """The token drawn for one row; logprobs only when the row asked for them."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


class ScoredPosition(msgspec.Struct, frozen=True):
    """Log probability of a known next token, and the best alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class StepResult(msgspec.Struct, frozen=True):
    """What came of a Step. One entry per row, in row order.

    samples   None where the row had no `sampling` or failed
    scored    per row, one entry per `Row.score`
    failures  seq_id → reason, for rows whose numbers went wrong (NaN logits); the other rows stand
    elapsed_s device time of this step, wall clock
    """

    step_id: int
    samples: tuple[Sample | None, ...]
    scored: tuple[tuple[ScoredPosition, ...], ...] = ()
    failures: dict[SeqId, str] = {}
    elapsed_s: float = 0.0
