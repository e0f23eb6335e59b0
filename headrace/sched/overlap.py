"""When the next step is planned while one still runs, and which sequences may be in it ahead of their last token.

Owns nothing. Called by the scheduler and its planner.

    device:  | step n           | step n+1         | step n+2
    host:         plan n+1 │ commit n, plan n+2 │ commit n+1 …

A decoding sequence will have one more token when step n ends; step n+1 computes that token before anybody here knows
it, and samples the one after. If step n turns out to have ended the sequence (an end token, a failed row, an abort),
its row in n+1 was for nothing: its result is passed over, its blocks stay fenced until n+1 has ended, and what it wrote
is never published. Ends by length are foreseen: no row goes past `max_len`.

The order is one step after the other, as if nothing overlapped, while
- step n has a row whose sampling needs the host (penalties read all tokens, typical_p is drawn there), or of a search;
- a sequence would have to be preempted to go on: nobody in flight may be, so step n is waited for first;
- background sequences run and others wait, to which they give way.
Source: vLLM's asynchronous scheduling and SGLang's overlapped scheduler, which plan with placeholders as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.kv import BlockPool
from headrace.sched.roster import Roster
from headrace.sched.sequence import Sequence


def can_run_ahead(sequence: Sequence) -> bool:
    """Say whether a sequence whose next token is in flight may be in one more step: it is sure to want one."""
    return not sequence.needs_host and sequence.beams is None and len(sequence.tokens) + 1 < sequence.max_len


def can_overlap(members: Iterable[Sequence], roster: Roster, pool: BlockPool) -> bool:
    """Say whether a step should be planned while one with rows of `members` runs. Cost: a look at each of them."""
    if roster.background and roster.waiting.num_interactive:
        return False
    if [sequence for sequence in members if sequence.needs_host or sequence.beams is not None]:
        return False
    if pool.num_free >= roster.num_running:  # nobody wants more than one block
        return True
    num_wanted = sum(sequence.num_computed >= sequence.capacity for sequence in roster.running())
    return num_wanted <= pool.num_free
