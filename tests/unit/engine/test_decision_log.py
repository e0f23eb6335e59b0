"""The log on disk: bounded, whole, without content, and no burden to the engine."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.core.clock import MonotonicClock
from headrace.core.errors import ConfigError, Overloaded
from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Sample, StepResult
from headrace.engine import AsyncEngine, Engine
from headrace.engine import decision_log as module
from headrace.engine.decision_log import DecisionLog
from headrace.engine.recording import RecordingScheduler, StepIdTaken
from headrace.kv import BlockPool
from headrace.sched import SchedulerLimits, Sequence
from headrace.sim.log_files import read_log
from headrace.sim.replay import replay
from headrace.testing import ByteTokenizer, UniformModel

LIMITS = SchedulerLimits(max_num_seqs=4, max_step_tokens=16, max_context=64, max_waiting=3)
BLOCK = 4


def open_log(path: Path, limit_bytes: int = 1 << 20) -> DecisionLog:
    return DecisionLog(path, limit_bytes, num_blocks=32, block_size=BLOCK, limits=LIMITS, version="1")


def make(path: Path, limit_bytes: int = 1 << 20) -> RecordingScheduler:
    return RecordingScheduler(BlockPool(32), BLOCK, LIMITS, open_log(path, limit_bytes).note)


def serve(scheduler: RecordingScheduler, first_id: int, num_sequences: int) -> None:
    for seq_id in range(first_id, first_id + num_sequences):
        scheduler.submit(Sequence(SeqId(seq_id), [7, 7, 7, 7, seq_id % 5], SamplingParams(), max_tokens=6), 1.0)
        while (step := scheduler.schedule(2.0)) is not None:
            samples = tuple(None if row.sampling is None else Sample(90210) for row in step.rows)
            scheduler.commit(step, StepResult(step.step_id, samples, elapsed_s=1e-3), 3.0)


def kinds(path: Path) -> list[str]:
    return [json.loads(line)[0] for line in path.read_text().splitlines()]


def test_an_engines_life_is_on_disk_when_it_has_ended(tmp_path: Path, ask: Callable[..., Any]) -> None:
    path = tmp_path / "log.jsonl"
    scheduler = make(path)
    model = UniformModel(num_blocks=32, block_size=BLOCK, vocab_size=256)
    clock = MonotonicClock()
    service = AsyncEngine(Engine(scheduler, model, clock), ByteTokenizer(), clock, vocab_size=256)

    async def live() -> None:
        await service.start()
        async with asyncio.timeout(20):
            asked = [service.generate(ask("a river runs", max_tokens=9)) for _ in range(3)]
            await asyncio.gather(*(anext(stream) for stream in asked))
            await asked[0].aclose()
            for stream in asked[1:]:
                async for _ in stream:
                    pass
        await service.stop()

    asyncio.run(live())
    report = replay(read_log(path))
    assert report.deviation is None
    assert report.is_complete
    assert report.sequences == 3
    assert sum(report.ends.values()) == 3


def test_no_token_can_be_read_from_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    scheduler = make(path)
    serve(scheduler, 0, 2)
    scheduler.abort_all()
    text = path.read_text()
    assert "90210" not in text
    first, second = (line for line in map(json.loads, text.splitlines()) if line[0] == "submit")
    assert first[5] == second[5]  # the same block has the same digest in one log
    other = tmp_path / "other.jsonl"
    scheduler = make(other)
    serve(scheduler, 0, 1)
    scheduler.abort_all()
    (third,) = (line for line in map(json.loads, other.read_text().splitlines()) if line[0] == "submit")
    assert third[5] != first[5]  # and another one in another log


def test_files_stay_within_their_bytes_and_a_rotated_log_is_replayed_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    scheduler = make(path, limit_bytes=60_000)
    serve(scheduler, 0, 40)
    scheduler.abort_all()
    files = sorted(tmp_path.iterdir())
    assert 1 < len(files) <= 4
    assert sum(file.stat().st_size for file in files) <= 60_000
    assert replay(read_log(path)).sequences == 40
    assert replay(read_log(tmp_path / "log.jsonl.1")).sequences == 40


def test_a_log_without_its_beginning_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    scheduler = make(path, limit_bytes=8000)
    serve(scheduler, 0, 60)
    scheduler.abort_all()
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(ConfigError, match=r"file 0 of \d+ .* is gone.*decision_log_mib"):
        replay(read_log(path))


def test_a_new_life_does_not_mix_with_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for num_sequences in (5, 2):
        scheduler = make(path)
        serve(scheduler, 0, num_sequences)
        scheduler.abort_all()
    assert replay(read_log(path)).sequences == 2
    assert replay(read_log(tmp_path / "log.jsonl.1")).sequences == 5


def test_refusals_are_told(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    scheduler = make(path)
    with pytest.raises(Overloaded):
        scheduler.check_admission([Sequence(SeqId(0), [1], SamplingParams(), max_tokens=1)], 0.0, num_queued=99)
    scheduler.abort_all()
    assert kinds(path) == ["log", "refused", "end"]
    assert replay(read_log(path)).refused == 1


def test_a_path_that_cannot_be_written_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.decision_log .* cannot be written"):
        open_log(tmp_path / "gone" / "log.jsonl")


def test_a_full_disk_ends_the_log_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Linux has a device that is always full."""
    log = open_log(tmp_path / "log.jsonl")
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - the log closes it
    log._file.close()
    log._file = full
    with caplog.at_level(logging.WARNING):
        for step_id in range(10_000):
            log.note(StepIdTaken(step_id))
        log.close()
    assert not log._thread.is_alive()
    assert "serving goes on without it" in caplog.text


def test_what_does_not_fit_the_ring_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RING_RECORDS", 0)
    log = open_log(tmp_path / "log.jsonl")
    for step_id in range(20):
        log.note(StepIdTaken(step_id))
    monkeypatch.undo()
    log.note(StepIdTaken(20))
    log.close()
    assert kinds(tmp_path / "log.jsonl") == ["log", "lost", "take"]
    with pytest.raises(ConfigError, match="20 records were lost here"):
        replay(read_log(tmp_path / "log.jsonl"))
