"""The loop without an event loop: reports are collected by the engine thread itself."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from headrace.core.clock import MonotonicClock
from headrace.core.delta import FinishReason
from headrace.core.errors import EngineDead
from headrace.core.request import SamplingParams, SeqId
from headrace.engine import Engine, StepReport
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence, dry_steps
from headrace.testing import UniformModel


class Parts:
    """An engine that has not been started, and a queue of what it delivers."""

    def __init__(self, *, plans_ahead: bool = False, **model: Any) -> None:
        self.model = UniformModel(num_blocks=16, block_size=4, vocab_size=50, **model)
        limits = SchedulerLimits(
            max_num_seqs=4, max_step_tokens=8, max_context=40, max_waiting=8, plans_ahead=plans_ahead
        )
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


class Watch:
    """Counts the steps that had another behind them when their result was asked for."""

    def __init__(self) -> None:
        self.parts = Parts(plans_ahead=True, on_step=self)
        self.num_overlapped = 0

    def __call__(self, step: Any) -> None:
        self.num_overlapped += self.parts.model.num_pending > 0


def test_a_step_is_launched_behind_the_one_that_runs() -> None:
    watch = Watch()
    parts = watch.parts
    parts.engine.submit([sequence(0), sequence(1)])
    parts.start()
    reports = [parts.reports.get(timeout=10) for _ in range(5)]
    assert [[event.sample is not None for event in report.events] for report in reports] == [[True, True]] * 5
    assert watch.num_overlapped == 4  # the last token of both is foreseen: nothing is behind it
    parts.engine.stop()
    parts.engine.dead.result(10)
    assert parts.model.num_pending == 0


def test_times_of_overlapping_steps_do_not_overlap() -> None:
    parts = Parts(plans_ahead=True)
    parts.engine.submit([sequence(0, max_tokens=20)])
    parts.start()
    reports = [parts.reports.get(timeout=10) for _ in range(20)]
    ends = [report.now for report in reports]
    steps = [report.step for report in reports if report.step is not None]
    assert [step.began_s for step in steps[1:]] == ends[:-1]  # each begins where the one before has ended
    assert sum(step.loop_s for step in steps) <= MonotonicClock().now() - steps[0].began_s
    parts.engine.stop()
    parts.engine.dead.result(10)


def in_its_first_step() -> tuple[Parts, threading.Semaphore]:
    """Return an engine that plans ahead and waits in its first step; each release lets one step go on."""
    begun, goes_on = threading.Semaphore(0), threading.Semaphore(0)

    def wait(step: Any) -> None:
        if not step.is_dry_run:
            begun.release()
            assert goes_on.acquire(timeout=10)

    parts = Parts(plans_ahead=True, on_step=wait)
    parts.engine.submit([sequence(0, max_tokens=30)])
    parts.start()
    assert begun.acquire(timeout=10)
    return parts, goes_on


def test_an_abort_between_two_steps_leaves_the_second_without_an_event() -> None:
    parts, goes_on = in_its_first_step()
    parts.engine.abort([SeqId(0)])  # one step runs, the next is launched
    goes_on.release(9)
    events = []
    while not any(event.finish for event in events):
        events += parts.reports.get(timeout=10).events
    assert [event.finish for event in events] == [None, FinishReason.ABORT]
    report = parts.reports.get(timeout=10)  # the step that was behind, for nobody
    assert (report.events, len(report.rows)) == ([], 1)
    assert parts.engine.snapshot().num_free_blocks == 16
    parts.engine.stop()
    parts.engine.dead.result(10)


def test_a_step_for_nobody_is_taken_in_although_nothing_is_left_to_do() -> None:
    parts = Parts(plans_ahead=True)
    ending = Sequence(SeqId(0), [1, 2, 3], SamplingParams(), max_tokens=5, stop_token_ids=frozenset(range(50)))
    parts.engine.submit([ending])
    parts.start()
    assert [event.finish for event in parts.reports.get(timeout=10).events] == [FinishReason.STOP]
    report = parts.reports.get(timeout=10)
    assert (report.events, len(report.rows)) == ([], 1)
    assert parts.engine.snapshot().num_free_blocks == 16
    parts.engine.stop()
    parts.engine.dead.result(10)


def test_a_stop_takes_in_what_is_on_its_way() -> None:
    parts, goes_on = in_its_first_step()
    parts.engine.stop()
    goes_on.release(9)
    parts.engine.dead.result(10)
    events = [event for report in parts.take() for event in report.events]
    assert [event.finish for event in events] == [None, None, FinishReason.ABORT]
    assert parts.model.num_pending == 0


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_step_that_raises_with_another_behind_it_ends_all_requests_once(number: int) -> None:
    def explode(step: Any) -> None:
        if not step.is_dry_run and step.step_id == first_id + number:
            raise OSError("no device")

    parts = Parts(plans_ahead=True, on_step=explode)
    first_id = len(list(dry_steps(Parts().scheduler)))
    parts.engine.submit([sequence(0), sequence(1), sequence(2)])
    parts.engine.start(parts.reports.put)
    with pytest.raises(EngineDead, match="no device"):
        parts.engine.dead.result(10)
    events = [event for report in parts.take() for event in report.events]
    ends = [(event.seq_id, event.finish) for event in events if event.finish is not None]
    assert sorted(ends) == [(number, FinishReason.ERROR) for number in range(3)]
    assert parts.engine.snapshot().num_free_blocks == 16
