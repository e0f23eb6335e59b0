"""The choice of a backend, and what a model costs on it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from headrace.app import backends
from headrace.app.derived import Derived
from headrace.app.hardware import detect
from headrace.app.loading import load_model, open_model
from headrace.app.plan import ModelFacts, resolve
from headrace.app.pulling import ensure_pulled
from headrace.core.clock import MonotonicClock
from headrace.core.errors import ConfigError, OutOfMemory
from headrace.core.request import Reach, Request, RequestId, SamplingParams, StopRules
from headrace.core.settings import EngineSettings, KvDtype, Quantization, Settings
from headrace.executor.native import problem as native_problem
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.ops.cuda import support as cuda_support
from headrace.ops.cuda.support import DeviceFacts, has_device
from headrace.sim.log_files import read_log
from headrace.sim.replay import replay
from headrace.testing.checkpoints import write_checkpoint


def settings(path: Path, quantization: Quantization = "auto") -> Settings:
    engine = EngineSettings(backend="reference", kv_memory_mib=1, quantization=quantization)
    return Settings(models=(f"file:{path}",), engine=engine, cache_dir=str(path.parent))


def test_auto_takes_native_where_it_works() -> None:
    chosen = backends.choose("auto")
    assert chosen.value == ("native" if native_problem() is None else "reference")
    assert chosen.reason


def test_reference_is_taken_when_asked_for() -> None:
    assert backends.choose("reference").value == "reference"


@pytest.mark.skipif(has_device(), reason="there is a GPU here")
def test_cuda_without_a_gpu_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"'cuda' does not work here: .*(not installed: pip install|no NVIDIA GPU)"):
        backends.choose("cuda")


def test_int8_kv_and_windows_are_planned_for_on_a_gpu_as_on_a_cpu(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "tiny")
    with open_checkpoint(path) as checkpoint:
        program = build_program(checkpoint.config)
        engine = EngineSettings(kv_dtype="int8", attention_window=64, max_context=10_000, kv_memory_mib=8)
        known = [backends.facts("m", backend, program, checkpoint, engine) for backend in ("cuda", "native")]
    # Layers, K and V, heads, channels with a scale.
    assert known[0].kv_token_bytes == known[1].kv_token_bytes == 2 * 2 * 2 * (16 + 2)
    plan = resolve(engine, detect(), known[0], Derived("cuda", "asked for"))
    assert (plan.kv_dtype.value, plan.max_context.value) == ("int8", 10_000)
    assert plan.reach.value == Reach(window=64, num_sinks=4)


class Gpu:
    """Stands in for a GPU while a start is planned."""

    def __init__(self, patch: pytest.MonkeyPatch, *, free_mib: int, capability: tuple[int, int] = (9, 0)) -> None:
        facts = DeviceFacts("a GPU", capability, free_mib << 20, free_mib << 20)
        patch.setattr(cuda_support, "device_facts", lambda: facts)
        patch.setattr(cuda_support, "has_device", lambda: True)
        patch.setattr(cuda_support, "problem", lambda: None)


@pytest.mark.parametrize(
    ("gpu", "dials", "error", "says"),
    [
        ({"free_mib": 4}, {}, OutOfMemory, r"512 tokens .* a GPU has 3 MiB free; lower engine\.max_step_tokens"),
        (
            {"free_mib": 400},
            {"kv_memory_mib": 500},
            OutOfMemory,
            r"lower engine\.kv_memory_mib or take a smaller model",
        ),
        ({"free_mib": 400}, {"quantization": "fp8"}, ConfigError, r"compute capability 8\.0; fp8 takes 8\.9"),
        ({"free_mib": 400}, {"early_launch": True}, ConfigError, r"compute capability 8\.0; .* takes 9\.0"),
    ],
)
def test_what_does_not_fit_a_gpu_is_refused_before_anything_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: dict[str, int],
    dials: dict[str, object],
    error: type[Exception],
    says: str,
) -> None:
    Gpu(monkeypatch, capability=(8, 0), **gpu)
    path = write_checkpoint(tmp_path / "tiny")
    engine = EngineSettings(backend="cuda", **dials)  # type: ignore[arg-type]
    chosen = Settings(models=(f"file:{path}",), engine=engine, cache_dir=str(tmp_path))
    with pytest.raises(error, match=says):
        open_model(ensure_pulled(chosen, chosen.models[0]), chosen, detect())
    engine = EngineSettings(backend="auto")
    fitting = Settings(models=(f"file:{path}",), engine=engine, cache_dir=str(tmp_path))
    if gpu["free_mib"] > 100:
        opened = open_model(ensure_pulled(fitting, fitting.models[0]), fitting, detect())
        opened.close()
        assert opened.plan.backend.value == "cuda"


@pytest.mark.parametrize(
    ("free_mib", "dials", "seqs", "tokens"),
    [(80_000, {}, 256, 8192), (140, {}, 64, 4096), (80_000, {"max_num_seqs": 9, "max_step_tokens": 700}, 9, 700)],
)
def test_steps_are_as_long_as_a_gpu_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mib: int, dials: dict[str, int], seqs: int, tokens: int
) -> None:
    Gpu(monkeypatch, free_mib=free_mib)
    path = write_checkpoint(tmp_path / "tiny")
    engine = EngineSettings(backend="cuda", **dials)  # type: ignore[arg-type]
    chosen = Settings(models=(f"file:{path}",), engine=engine, cache_dir=str(tmp_path))
    opened = open_model(ensure_pulled(chosen, chosen.models[0]), chosen, detect())
    opened.close()
    assert (opened.plan.max_num_seqs.value, opened.plan.max_step_tokens.value) == (seqs, tokens)


def test_a_gpu_that_cannot_be_used_is_a_warning_where_auto_chooses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Gpu(monkeypatch, free_mib=1)
    monkeypatch.setattr(cuda_support, "problem", lambda: "torch is 2.9; it needs 2.11")
    assert backends.choose("auto").value != "cuda"
    assert "there is a GPU, and steps run on the CPU: torch is 2.9" in caplog.text
    with pytest.raises(ConfigError, match=r"'cuda' does not work here: torch is 2\.9"):
        backends.choose("cuda")


def test_fp8_is_refused_on_a_cpu(tmp_path: Path) -> None:
    chosen = settings(write_checkpoint(tmp_path / "tiny"), "fp8")
    with pytest.raises(ConfigError, match=r"fp32 only|cuda backend alone"):
        open_model(ensure_pulled(chosen, chosen.models[0]), chosen, detect())


def test_a_pool_on_a_gpu_takes_what_weights_leave() -> None:
    facts = ModelFacts(name="m", max_positions=1 << 20, weight_bytes=1 << 20, kv_token_bytes=1 << 20, on_device=True)
    machine = replace(detect(), memory_available=1025 << 20)
    plan = resolve(EngineSettings(block_size=4), machine, facts, Derived("cuda", "asked for"))
    assert plan.num_blocks.value == 1024 // 4
    assert plan.batch_invariant.value is False
    assert plan.early_launch.value is False


@pytest.mark.parametrize(("backend", "expected"), [("cuda", True), ("native", False), ("reference", False)])
def test_kernels_are_launched_early_on_a_gpu_that_was_told_to(backend: str, expected: bool) -> None:
    facts = ModelFacts(name="m", max_positions=512, weight_bytes=1, kv_token_bytes=64, on_device=backend == "cuda")
    plan = resolve(EngineSettings(early_launch=True), detect(), facts, Derived(backend, "asked for"))
    assert plan.early_launch.value is expected


@pytest.mark.parametrize(
    ("wanted", "backend", "expected"),
    [
        ("auto", "cuda", True),
        ("auto", "native", False),
        ("auto", "reference", False),
        ("on", "reference", True),
        ("off", "cuda", False),
        ("off", "native", False),
    ],
)
def test_steps_are_planned_ahead_where_the_device_would_wait(wanted: Any, backend: str, expected: bool) -> None:
    facts = ModelFacts(name="m", max_positions=512, weight_bytes=1, kv_token_bytes=64, on_device=backend == "cuda")
    plan = resolve(EngineSettings(async_scheduling=wanted), detect(), facts, Derived(backend, "asked for"))
    assert plan.async_scheduling.value is expected


def test_the_native_backend_does_not_plan_ahead_on_the_cores_that_compute() -> None:
    facts = ModelFacts(name="m", max_positions=512, weight_bytes=1, kv_token_bytes=64)
    with pytest.raises(ConfigError, match=r"async_scheduling is 'on', and the native backend .* leave it at 'auto'"):
        resolve(EngineSettings(async_scheduling="on"), detect(), facts, Derived("native", "asked for"))


def test_a_loaded_model_plans_ahead_and_its_log_runs_again(tmp_path: Path) -> None:
    path, log = write_checkpoint(tmp_path / "tiny"), tmp_path / "log.jsonl"
    engine = EngineSettings(backend="reference", kv_memory_mib=1, async_scheduling="on", decision_log=str(log))
    chosen = Settings(models=(f"file:{path}",), engine=engine, cache_dir=str(tmp_path))
    model = load_model(open_model(ensure_pulled(chosen, chosen.models[0]), chosen, detect()), MonotonicClock())

    async def answer() -> None:
        await model.engine.start()
        request = Request(
            request_id=RequestId("r"),
            model="tiny",
            prompt=(1, 2, 3),
            sampling=SamplingParams(),
            stop=StopRules(max_tokens=5),
        )
        assert [delta.finish async for delta in model.engine.generate(request)][-1] is not None
        await model.engine.stop()

    asyncio.run(answer())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    kinds = "".join(line[0][0] for line in lines if line[0] in ("plan", "result"))
    assert kinds.startswith("pprprprp")  # the next step is planned before the result of one is in
    report = replay(read_log(log))
    assert report.deviation is None
    assert report.is_complete


def test_reference_weights_are_fp32(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "tiny")
    chosen = settings(path)
    opened = open_model(ensure_pulled(chosen, chosen.models[0]), chosen, detect())
    opened.close()
    stored = (path / "model.safetensors").stat().st_size
    assert opened.plan.weight_bytes.value == pytest.approx(stored, rel=0.05)  # the file is fp32 too
    assert opened.plan.num_blocks.value == 2**20 // (
        2 * 2 * 2 * 16 * 4 * 32
    )  # layers, K and V, heads, dim, fp32, block


def test_reference_refuses_to_quantize(tmp_path: Path) -> None:
    chosen = settings(write_checkpoint(tmp_path / "tiny"), "int4")
    with pytest.raises(ConfigError, match="fp32 only"):
        open_model(ensure_pulled(chosen, chosen.models[0]), chosen, detect())


def test_int8_kv_fits_nearly_twice_the_tokens_into_the_same_memory(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "tiny")
    blocks = {}
    for kv_dtype in get_args(KvDtype):
        engine = EngineSettings(backend="auto", kv_memory_mib=8, kv_dtype=kv_dtype)
        chosen = Settings(models=(f"file:{path}",), engine=engine, cache_dir=str(tmp_path))
        opened = open_model(ensure_pulled(chosen, chosen.models[0]), chosen, detect())
        executor = backends.open_executor(opened.plan, opened.program, opened.checkpoint)
        opened.close()
        executor.shutdown()
        blocks[kv_dtype] = opened.plan.num_blocks.value
        assert executor.num_blocks == opened.plan.num_blocks.value
        assert opened.plan.kv_dtype.value == kv_dtype
    assert 1.5 < blocks["int8"] / blocks["bf16"] < 2.0  # heads of 16 channels: the scale is an eighth of them


def test_the_references_pool_is_planned_by_what_it_keeps(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "tiny")
    engine = EngineSettings(backend="reference", kv_memory_mib=1, kv_dtype="bf16")
    chosen = Settings(models=(f"file:{path}",), engine=engine, cache_dir=str(tmp_path))
    opened = open_model(ensure_pulled(chosen, chosen.models[0]), chosen, detect())
    opened.close()
    assert opened.plan.num_blocks.value == 2**20 // (2 * 2 * 2 * 16 * 2 * 32)
