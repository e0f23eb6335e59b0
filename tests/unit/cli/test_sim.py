"""`headrace sim`: sizes, policies and forms of the report."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from headrace.app.derived import Derived
from headrace.app.hardware import detect
from headrace.app.plan import ModelFacts, resolve
from headrace.cli import main
from headrace.core.settings import EngineSettings, SchedulingSettings
from headrace.sched import SchedulerLimits
from headrace.sim import SimShape, read_step_times, read_trace, simulate


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": i * 100, "input_length": 1024, "output_length": 3, "hash_ids": [i % 3, 10 + i]} for i in range(12)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_every_size_meets_every_policy(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    code = main(["sim", trace, "--shares", "60", "100", "--policies", "lru", "cost", "--json", "--html", str(page)])
    reports = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [(r["cache_share_percent"], r["policy"]) for r in reports] == [
        (60, "lru"),
        (60, "cost"),
        (100, "lru"),
        (100, "cost"),
    ]
    assert [r["completed"] for r in reports] == [12] * 4
    assert reports[2]["of_unlimited"] >= reports[0]["of_unlimited"] > 0
    assert "trace.jsonl in simulation" in page.read_text()


def test_settings_of_a_server_apply(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[engine]\nblock_size = 64\nprefix_policy = 'cost'\n")
    command = ["sim", trace, "--config", str(config), "--kv-tokens", "6400", "--requests", "2", "--rate", "2"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "blocks of 64 tokens" in out
    assert "100 blocks" in out
    assert "cost" in out
    assert "2 requests" in out


@pytest.mark.parametrize(("times", "backend"), [("smollm2-135m-2-cores", "native"), ("llama-8b-h100", "cuda")])
def test_steps_are_cut_and_planned_as_on_the_machine_of_the_step_times(
    trace: str, times: str, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", trace, "--kv-tokens", "64000", "--step-times", times, "--rate", "50", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)[0]
    facts = ModelFacts(name="m", max_positions=131_072, weight_bytes=1, kv_token_bytes=1)
    plan = resolve(EngineSettings(), detect(), facts, Derived(backend, "asked for"))

    def simulated(limits: SchedulerLimits) -> dict[str, object]:
        used = SimShape(limits=limits, num_blocks=2000, block_size=32, times=read_step_times(times))
        report: dict[str, object] = msgspec.to_builtins(simulate(read_trace(Path(trace)).faster(50), used))
        return report | {"wall_s": told["wall_s"]}

    limits = SchedulerLimits(
        max_num_seqs=plan.max_num_seqs.value,
        max_step_tokens=plan.max_step_tokens.value,
        chunk_tokens=plan.chunk_tokens.value,
        chunk_grows=backend != "cuda",
        plans_ahead=plan.async_scheduling.value,
        max_context=plan.max_context.value,
        max_waiting=plan.max_waiting.value,
        policy=SchedulingSettings(),
    )
    assert simulated(limits) == told
    assert simulated(msgspec.structs.replace(limits, chunk_tokens=64, chunk_grows=False)) != told
    if plan.async_scheduling.value:
        assert simulated(msgspec.structs.replace(limits, plans_ahead=False)) != told


def test_a_queue_that_is_too_long_refuses_as_a_server_would(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sim", trace, "--kv-tokens", "64000", "--step-times", "smollm2-135m-2-cores", "--json"]
    assert main([*command, "--max-waiting-tokens", "2000"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["refused"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kv-tokens", "3"], "holds no block of 32"),
        (["--step-times", "abacus"], "'abacus' are neither known"),
        (["--rate", "0"], "above 0"),
        (["--kv-tokens", "6400", "--html", "/nowhere/page.html"], "/nowhere/page.html: No such file or directory"),
    ],
)
def test_wrong_flags_are_one_line_and_code_2(
    trace: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", trace, *flags]) == 2
    assert message in capsys.readouterr().err
