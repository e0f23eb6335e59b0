"""The loop without an event loop: reports are collected by the engine thread itself."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from headrace.core.clock import MonotonicClock
from headrace.core.delta import FinishReason
from headrace.core.errors import EngineDead
from headrace.core.request import SamplingParams, SeqId
from headrace.engine import Engine, StepReport
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.testing import UniformModel


class Parts:
    """An engine that has not been started, and a queue of what it delivers."""

    def __init__(self, **model: Any) -> None:
        self.model = UniformModel(num_blocks=16, block_size=4, vocab_size=50, **model)
        limits = SchedulerLimits(max_num_seqs=4, max_step_tokens=8, max_context=40, max_waiting=8)
        self.scheduler = Scheduler(BlockPool(16), 4, limits)
        self.engine = Engine(self.scheduler, self.model, MonotonicClock())
        self.reports: queue.SimpleQueue[StepReport] = queue.SimpleQueue()

    def start(self) -> None:
        self.engine.start(self.reports.put)
        self.engine.ready.result(10)

    def take(self) -> list[StepReport]:
        found = []
        while not self.reports.empty():
            found.append(self.reports.get())
        return found


def sequence(seq_id: int, max_tokens: int = 5) -> Sequence:
    return Sequence(SeqId(seq_id), [1, 2, 3], SamplingParams(), max_tokens=max_tokens)


def test_each_step_is_one_report_with_its_numbers() -> None:
    parts = Parts()
    parts.engine.submit([sequence(0), sequence(1)])
    parts.start()
    reports = [parts.reports.get(timeout=10) for _ in range(5)]
    assert [len(report.events) for report in reports] == [2] * 5
    steps = [report.step for report in reports if report.step]
    assert [(step.num_rows, step.num_tokens, step.num_sampled) for step in steps] == [(2, 6, 2)] + [(2, 2, 2)] * 4
    assert all(0 < step.device_s <= 1e-3 for step in steps)
    parts.engine.stop()
    parts.engine.dead.result(10)
    assert [report.events for report in parts.take()] == [[]]


def test_a_sequence_aborted_in_the_inbox_ends_without_a_token() -> None:
    parts = Parts()
    parts.engine.submit([sequence(0)])
    parts.engine.abort([SeqId(0), SeqId(0), SeqId(9)])
    parts.start()
    report = parts.reports.get(timeout=10)
    assert [(event.seq_id, event.finish, event.sample) for event in report.events] == [(0, FinishReason.ABORT, None)]
    parts.engine.stop()
    parts.engine.dead.result(10)


def test_sequences_that_wait_in_the_inbox_when_the_engine_fails_end_as_errors() -> None:
    def explode(step: Any) -> None:
        raise OSError("no device")

    parts = Parts(on_step=explode)
    parts.engine.submit([sequence(0), sequence(1)])
    parts.engine.start(parts.reports.put)
    with pytest.raises(EngineDead, match="no device"):
        parts.engine.dead.result(10)
    with pytest.raises(EngineDead, match="no device"):
        parts.engine.ready.result(0)
    (report,) = parts.take()
    assert [(event.seq_id, event.finish) for event in report.events] == [
        (0, FinishReason.ERROR),
        (1, FinishReason.ERROR),
    ]
    assert all("OSError: no device" in (event.error or "") for event in report.events)
    with pytest.raises(EngineDead, match="has stopped"):
        parts.engine.submit([sequence(2)])


def test_an_engine_stopped_before_its_start_frees_the_device_and_stays_down() -> None:
    parts = Parts()
    parts.engine.stop()
    parts.engine.stop()
    parts.engine.dead.result(0)
    assert parts.model.is_shut_down
    with pytest.raises(EngineDead, match="before it started"):
        parts.engine.start(parts.reports.put)


def test_warm_up_takes_the_path_of_real_steps_and_leaves_no_trace() -> None:
    seen: list[bool] = []
    parts = Parts(on_step=lambda step: seen.append(step.is_dry_run))
    parts.start()
    assert seen
    assert all(seen)
    snapshot = parts.engine.snapshot()
    assert (snapshot.num_free_blocks, snapshot.generated_tokens, snapshot.last_step_s) == (16, 0, None)
    parts.engine.stop()
    parts.engine.dead.result(10)
    assert parts.engine.snapshot().is_dead
