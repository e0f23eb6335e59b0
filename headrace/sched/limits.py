"""What a step and a queue may hold, and what has been done so far: the scheduler's section and its counters."""

from __future__ import annotations

import msgspec

from headrace.core.request import Reach
from headrace.core.settings import PrefixPolicy, SchedulingSettings
from headrace.kv import CostOrder


class SchedulerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The dials of one scheduler.

    max_num_seqs     sequences that hold blocks at once, and so rows of a step
    max_step_tokens  tokens a step computes
    chunk_tokens     prompt tokens of a step in which few sequences decode; None: what max_step_tokens leaves
    chunk_grows      more of them beside many that decode, whose steps are long anyway; a GPU's are not
    max_context      prompt and output of one sequence
    max_waiting      sequences in the queue before new requests are refused
    prefix_cache     keep the blocks of ended sequences for others that begin with the same tokens
    prefix_policy    which of them are evicted first: least recently used, or least cost times chance of reuse
    policy           who goes first; when none is given, nobody is refused for a long wait
    reach            what tokens attend to; None: all before them
    widest_window    of the model's layers, if every one has a window
    plans_ahead      a sequence may be in the next step before its last token is known; see `sched.overlap`
    """

    max_num_seqs: int
    max_step_tokens: int
    max_context: int
    max_waiting: int
    prefix_cache: bool = True
    prefix_policy: PrefixPolicy = "lru"
    policy: SchedulingSettings = SchedulingSettings(max_wait_s=None)
    reach: Reach | None = None
    widest_window: int | None = None
    chunk_tokens: int | None = None
    chunk_grows: bool = True
    plans_ahead: bool = False

    def prompt_tokens(self, num_decoding: int) -> int:
        """Return how many prompt tokens go into a step in which so many sequences decode; where that grows with them,
        all once half the places do.

        A chunk is a gap between the tokens of all that decode. Beside few of them two short steps cost little more
        than a long one; beside many they do, and the queue would wait for it.
        """
        if self.chunk_tokens is None or num_decoding == 0:
            return self.max_step_tokens
        if not self.chunk_grows:
            return self.chunk_tokens
        return max(self.chunk_tokens, self.max_step_tokens * 2 * num_decoding // self.max_num_seqs)

    def check(self) -> None:
        """Raise ValueError for a limit below 1."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")

    def eviction_order(self, num_blocks: int, block_size: int) -> CostOrder | None:
        """Return the order of eviction for a pool; None for least recently used."""
        return CostOrder(num_blocks, block_size) if self.prefix_policy == "cost" else None


class SchedulerTotals(msgspec.Struct):
    """Counters since the start; they only grow. Each is written by one part of the scheduler."""

    num_preemptions: int = 0
    num_swaps: int = 0  # of them: those whose blocks are kept in host memory
    num_pauses: int = 0  # sequences whose reader was too slow for them
    prompt_tokens: int = 0  # prompt tokens computed for the first time
    generated_tokens: int = 0
    recomputed_tokens: int = 0  # the tax of preemption
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache, once per sequence
    prefix_hits: int = 0  # and found there
