"""Serve the same requests one step after the other and with the next step planned while one runs."""

from __future__ import annotations

from collections import deque

from headrace.core.delta import FinishReason
from headrace.core.protocols import Executor
from headrace.core.request import SamplingParams, SeqId
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence

PROMPTS = [[7 * (i + 1) % 251 for i in range(length)] for length in (1, 9, 18, 33)]


class Served:
    """What came of the requests, and how many rows were ahead of their token and for nothing."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.finishes: dict[int, FinishReason] = {}
        self.num_ahead = 0
        self.num_wasted = 0


def serve(
    executor: Executor,
    samplings: list[SamplingParams],
    *,
    plans_ahead: bool,
    max_tokens: int = 12,
    stop: frozenset[int] = frozenset(),
    max_step_tokens: int = 24,
) -> Served:
    """Serve a prompt for each of `samplings`, as the engine does, and check that nothing leaks."""
    limits = SchedulerLimits(
        max_num_seqs=4, max_step_tokens=max_step_tokens, max_context=128, max_waiting=9, plans_ahead=plans_ahead
    )
    scheduler = Scheduler(BlockPool(executor.num_blocks), executor.block_size, limits)
    for number, sampling in enumerate(samplings):
        prompt = PROMPTS[number % len(PROMPTS)]
        scheduler.submit(Sequence(SeqId(number), prompt, sampling, max_tokens=max_tokens + number, stop_token_ids=stop))
    served, pending = Served(), deque()
    while scheduler.has_work or pending:
        while not pending or scheduler.can_overlap:
            if (step := scheduler.schedule(0.0)) is None:
                break
            served.num_ahead += sum(row.is_ahead for row in step.rows)
            pending.append((step, executor.launch(step)))
        step, result = pending.popleft()
        live = {sequence.seq_id for sequence in scheduler.live()}
        served.num_wasted += sum(row.seq_id not in live for row in step.rows)
        for event in scheduler.commit(step, result.result(), 0.0):
            if event.sample is not None:
                served.tokens.setdefault(event.seq_id, []).append(event.sample.token_id)
            if event.finish is not None:
                served.finishes[event.seq_id] = event.finish
        scheduler.check()
    assert scheduler.num_free_blocks == executor.num_blocks
    return served
