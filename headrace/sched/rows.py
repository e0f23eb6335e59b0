"""Make the rows of a step from sequences: the hot path of planning, without side effects.

Owns nothing. Called by the scheduler once per row and step, so it copies no more than the tokens of the row.
"""

from __future__ import annotations

from headrace.core.step import Row
from headrace.sched.sequence import Sequence

_UNKNOWN = (0,)


def make_row(sequence: Sequence, start: int, count: int) -> Row:
    """Make the row that computes `count` tokens from position `start`; it samples if that reaches the last token."""
    tokens = sequence.tokens
    end = start + count
    num_output = len(tokens) - sequence.prompt_len
    samples = end == len(tokens) and sequence.max_tokens > 0
    return Row(
        sequence.seq_id,
        start,
        tokens[start:end],
        sequence.table,
        sequence.sampling if samples else None,
        num_output,
        sequence.prompt_len,
        # The list itself: it grows only when this row's own sample is committed.
        tokens if samples and sequence.needs_history else None,
        sequence.banned if num_output < sequence.min_tokens else (),
        () if sequence.num_score_top is None else _scores(sequence, start, end),
        sequence.num_score_top or 0,
        max(min(end, sequence.peak_computed) - start, 0),
        sequence.reach,
        sequence.num_evicted,
    )


def make_ahead_row(sequence: Sequence, start: int) -> Row:
    """Make the row that computes the token at `start`, which a step in flight samples, and samples the one after."""
    num_output = start + 1 - sequence.prompt_len
    return Row(
        sequence.seq_id,
        start,
        _UNKNOWN,
        sequence.table,
        sequence.sampling,
        num_output,
        sequence.prompt_len,
        banned=sequence.banned if num_output < sequence.min_tokens else (),
        reach=sequence.reach,
        num_evicted=sequence.num_evicted,
        is_ahead=True,
    )


def _scores(sequence: Sequence, start: int, end: int) -> tuple[tuple[int, int], ...]:
    """Name the prompt positions in start … end-1 whose next token is still without a log probability."""
    first = max(start, sequence.num_scored)
    last = min(end, sequence.prompt_len - 1)
    return tuple((position - start, sequence.tokens[position + 1]) for position in range(first, last))
