"""A log that was tampered with, or that cannot be followed, is told from one that was not, at the right line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from headrace.cli import main
from headrace.core.errors import ConfigError
from headrace.core.request import BeamParams, Request, RequestId, SamplingParams, SeqId, StopRules
from headrace.core.settings import SchedulingSettings
from headrace.core.step import CopyKind, Row, Sample, Step, StepResult
from headrace.engine.decision_log import DecisionLog
from headrace.engine.recording import RecordingScheduler
from headrace.kv import BlockPool
from headrace.kv.tiers import KeyChain, Places, TierHierarchy
from headrace.kv.transfer import DiskTransport, FrameCodec, HostPool, Mover
from headrace.sched import SchedulerLimits, Sequence, sequences_of
from headrace.sim import StepTimes
from headrace.sim.log_files import read_log
from headrace.sim.replay import replay
from headrace.testing import UniformModel, VirtualClock
from headrace.testing.uniform_model import TOKEN_BYTES

LIMITS = SchedulerLimits(
    max_num_seqs=4,
    max_step_tokens=16,
    max_context=64,
    max_waiting=99,
    policy=SchedulingSettings(output_ratio=0.0),
)
BLOCK, NUM_BLOCKS = 4, 12
TIMES = StepTimes(shared=2e-3, per_row=1e-4, per_token=3e-4)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Eight sequences in a pool that is too small for four of them."""
    path = tmp_path / "log.jsonl"
    sink = DecisionLog(path, 1 << 20, num_blocks=NUM_BLOCKS, block_size=BLOCK, limits=LIMITS, version="1")
    scheduler = RecordingScheduler(BlockPool(NUM_BLOCKS), BLOCK, LIMITS, sink.note)
    for seq_id in range(8):
        prompt = [1, 2, 3, 4, 5, 6, 7, 8, seq_id, seq_id]
        scheduler.submit(Sequence(SeqId(seq_id), prompt, SamplingParams(), max_tokens=14), 0.5)
    now = 1.0
    while (step := scheduler.schedule(now)) is not None:
        elapsed_s = TIMES.predict(step)
        now += elapsed_s
        samples = tuple(_sample(step, row) for row in step.rows)
        scheduler.commit(step, StepResult(step.step_id, samples, elapsed_s=elapsed_s), now)
    scheduler.abort_all()
    return path


@pytest.fixture
def tiered_log(tmp_path: Path) -> Path:
    """Two prompts that begin alike, whose beginning a process before has left on a disk."""
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        path.unlink(missing_ok=True)
        clock, host = VirtualClock(), HostPool(16, BLOCK * TOKEN_BYTES)
        codec = FrameCodec(bytes(32), bytes(16), host.block_bytes)
        disk = Mover("disk", DiskTransport(tmp_path / "kv", 1 << 20, clock), codec, host, clock)
        tiers = TierHierarchy(16, host.block_bytes, KeyChain(bytes(32), bytes(16)), Places([disk]))
        sink = DecisionLog(
            path, 1 << 20, num_blocks=40, block_size=BLOCK, limits=LIMITS, version="1", tiers=tiers.shape
        )
        scheduler = RecordingScheduler(BlockPool(40), BLOCK, LIMITS, sink.note, tiers)
        model = UniformModel(num_blocks=40, block_size=BLOCK, vocab_size=50, host=host)
        for seq_id in range(2):
            scheduler.submit(Sequence(SeqId(seq_id), [*range(20), seq_id], SamplingParams(), max_tokens=4), clock.now())
            while scheduler.has_work:
                if (step := scheduler.schedule(clock.now())) is not None:
                    scheduler.commit(step, model.launch(step).result(), clock.now())
                disk.work_off()
        scheduler.abort_all()
        if (step := scheduler.save_all(clock.now())) is not None:
            model.launch(step).result()
        tiers.stop(clock, 1.0)
    return path


@pytest.fixture
def searching_log(tmp_path: Path) -> Path:
    """One beam search, and its prompt again."""
    path = tmp_path / "log.jsonl"
    sink = DecisionLog(path, 1 << 20, num_blocks=40, block_size=BLOCK, limits=LIMITS, version="1")
    scheduler = RecordingScheduler(BlockPool(40), BLOCK, LIMITS, sink.note)
    model = UniformModel(num_blocks=40, block_size=BLOCK, vocab_size=50)
    request = Request(
        request_id=RequestId("r"),
        model="m",
        prompt=tuple(range(9)),
        sampling=SamplingParams(),
        stop=StopRules(max_tokens=8),
        beam=BeamParams(width=3),
    )
    for first_id in (0, 3):
        for sequence in sequences_of(request, first_id):
            scheduler.submit(sequence, 0.5)
        while (step := scheduler.schedule(1.0)) is not None:
            scheduler.commit(step, model.launch(step).result(), 1.0)
    scheduler.abort_all()
    return path


def _sample(step: Step, row: Row) -> Sample | None:
    return None if row.sampling is None else Sample((step.step_id * 7 + row.seq_id) % 50)


def change(path: Path, kind: str, number: int, index: int, value: object) -> int:
    """Change one element of the `number`th line of a kind; return the line's number."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    places = [i for i, line in enumerate(lines) if line[0] == kind]
    lines[places[number]][index] = value
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    return places[number] + 1


def test_an_honest_log_is_followed_to_its_end(log: Path) -> None:
    report = replay(read_log(log))
    assert report.deviation is None
    assert report.is_complete
    assert (report.sequences, report.ends) == (8, {"length": 8})
    assert report.preemptions > 0


@pytest.mark.parametrize(
    ("kind", "number", "index", "value", "what"),
    [
        ("plan", 3, 3, [], "members"),
        ("plan", 2, 4, [[0, 1, 1, 0, [5]]], "changes"),
        ("result", 2, 7, [[3, "length"]], "ends"),
        ("submit", 1, 5, ["00", "11"], "changes"),  # other blocks than the log's plans shared
    ],
)
def test_a_changed_line_is_where_the_replay_stops(
    log: Path, kind: str, number: int, index: int, value: object, what: str
) -> None:
    line = change(log, kind, number, index, value)
    deviation = replay(read_log(log)).deviation
    assert deviation is not None
    if kind != "submit":
        assert deviation.where == f"{log}:{line}"
        assert what in deviation.what


def test_another_scheduler_deviates(log: Path) -> None:
    head = json.loads(log.read_text().splitlines()[0])
    change(log, "log", 0, 7, {**head[7], "max_num_seqs": 3})
    deviation = replay(read_log(log)).deviation
    assert deviation is not None
    assert deviation.step_id == 1  # the first with room for a fourth
    assert "members" in deviation.what


def test_a_disk_that_had_something_else_is_another_story(tiered_log: Path) -> None:
    assert replay(read_log(tiered_log)).deviation is None
    lines = [json.loads(line) for line in tiered_log.read_text().splitlines()]
    found = [line for line in lines if line[0] == "below" and any(each[1] == "fetched" for each in line[1])]
    assert [each[3] for line in found for each in line[1] if each[1] == "fetched"] == [5]
    loads = [copy for line in lines if line[0] == "plan" for copy in line[5] if copy[0] == CopyKind.LOAD]
    assert len(loads) == 5
    found[0][1][0][3] = 4
    tiered_log.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    deviation = replay(read_log(tiered_log)).deviation
    assert deviation is not None
    assert "changes" in deviation.what


def test_places_that_are_asked_more_or_less_than_the_log_says_are_a_deviation(tiered_log: Path) -> None:
    text = tiered_log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    number, line = next((i, line) for i, line in enumerate(lines) if line[0] == "below" and line[2])
    for answers, what in [(line[2][:-1], "asked more than the log has"), ([*line[2], True], "1 answers .* not asked")]:
        changed = [*lines[:number], ["below", line[1], answers], *lines[number + 1 :]]
        tiered_log.write_text("".join(json.dumps(each, separators=(",", ":")) + "\n" for each in changed))
        deviation = replay(read_log(tiered_log)).deviation
        assert deviation is not None
        assert deviation.where == f"{tiered_log}:{number + 2}"
        assert re.search(what, deviation.replayed)


def test_a_search_that_goes_on_otherwise_is_told(searching_log: Path) -> None:
    report = replay(read_log(searching_log))
    assert report.deviation is None
    assert (report.sequences, report.ends) == (6, {"length": 2})
    lines = [json.loads(line) for line in searching_log.read_text().splitlines()]
    places = [i for i, line in enumerate(lines) if line[0] == "result" and line[8] and line[8][0][1]]
    forks = [move for i in places for move in lines[i][8][0][1] if move[0] != move[1]]
    assert len(forks) > 2, "beams give way to others"
    first = lines[places[0]]
    lines[places[0]] = [*first[:8], [[0, [[1, 0], [0, 0]], []]]]  # a beam less than there was
    searching_log.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    deviation = replay(read_log(searching_log)).deviation
    assert deviation is not None
    lines[places[0]] = [*first[:8], []]
    searching_log.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    deviation = replay(read_log(searching_log)).deviation
    assert deviation is not None
    assert "the log does not say how" in deviation.replayed


def test_a_line_cut_off_by_a_crash_is_left_out(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-5])
    report = replay(read_log(log))
    assert report.deviation is None
    assert not report.is_complete


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no line of a decision log"),
        ("hello\n", "is no line of a decision log"),
        ('["take",1]\n', "is no head"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        list(read_log(path))


def test_a_log_with_a_gap_says_how_far_it_could_be_followed(log: Path) -> None:
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:12], '["lost",3]\n', *lines[12:]]))
    with pytest.raises(ConfigError, match=r"log.jsonl:13: 3 records were lost here.*all \d steps before are the same"):
        replay(read_log(log))


def test_another_format_is_refused_by_number(log: Path) -> None:
    change(log, "log", 0, 1, 99)
    with pytest.raises(ConfigError, match="format 99; this version replays format 2"):
        list(read_log(log))


def test_the_command_says_same_or_where_not(log: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    times = tmp_path / "times.json"
    assert main(["replay", str(log), "--step-times", str(times)]) == 0
    assert "every decision is the same" in capsys.readouterr().out
    fitted = msgspec.json.decode(times.read_bytes(), type=StepTimes)
    assert fitted.shared == pytest.approx(TIMES.shared, rel=0.05)
    assert fitted.per_token == pytest.approx(TIMES.per_token, rel=0.05)
    line = change(log, "plan", 3, 3, [])
    assert main(["replay", str(log)]) == 1
    assert f"deviates at {log}:{line}" in capsys.readouterr().out
    assert main(["replay", str(log), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["deviation"]["where"] == f"{log}:{line}"
    assert main(["replay", str(tmp_path / "gone")]) == 2
