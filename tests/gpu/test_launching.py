"""A kernel that does not compile gives way to plain ops: one warning, a metric, the same tokens."""

from __future__ import annotations

import threading
from pathlib import Path
from subprocess import CalledProcessError

import pytest
import torch
from triton.runtime.errors import OutOfResources, PTXASError

from headrace.core.request import SamplingParams
from headrace.core.settings import Quantization
from headrace.obs.metrics import Metrics
from headrace.ops.cuda import launching, norm
from headrace.testing.checkpoints import Family, write_checkpoint
from tests.gpu.test_executor import cuda, generate, prompts, reference


@pytest.mark.parametrize(
    "error",
    [
        OutOfResources(300_000, 232_448, "shared memory"),
        PTXASError("ptxas fatal: unknown option"),
        RuntimeError("PassManager::run failed"),
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        CalledProcessError(1, ["gcc", "main.c"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_kernel_that_fails_is_named_once_and_its_work_is_done(
    device: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launching, "_failed", {})
    calls: list[int] = []

    def fails(*args: object, **options: object) -> None:
        calls.append(1)
        raise error

    monkeypatch.setattr(norm, "_launch", fails)
    x, weight = torch.arange(12.0, device=device).view(3, 4), torch.ones(4, device=device)
    out = torch.zeros((3, 4), device=device)
    for _ in range(3):
        norm.rms_norm(x, weight, out, eps=0.0)
    torch.testing.assert_close(out, x / x.square().mean(-1, keepdim=True).sqrt())
    assert len(calls) == 1
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "kernel 'rms_norm' cannot be compiled here, a slower torch op takes its place"
    ]
    metrics = Metrics()
    metrics.watch_kernels(launching.failed_kernels)
    assert 'headrace_kernel_fallbacks{kernel="rms_norm"} 1.0' in metrics.render()[0].decode()


def test_an_error_of_the_device_is_no_failure_to_compile(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_failed", {})

    def fails() -> None:
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        launching.attempt("any", torch.zeros(1, device=device), fails)
    assert launching.failed_kernels() == ()


@pytest.mark.parametrize(("family", "quantization"), [("gemma3", "auto"), ("qwen3", "auto"), ("llama", "fp8")])
def test_a_model_without_any_kernel_says_the_same(
    tmp_path: Path, device: str, family: Family, quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / family, family)
    sampled = SamplingParams(temperature=1.1, top_k=30, presence_penalty=0.5, seed=3)

    def told() -> list[list[int]]:
        executor = cuda(path, device, quantization=quantization)
        found = generate(executor, prompts(1, (9, 18)), 3, chunk=10, params=sampled)
        executor.shutdown()
        return found

    by_kernels = told() if quantization == "fp8" else generate(reference(path), prompts(1, (9, 18)), 3, params=sampled)
    monkeypatch.setattr(launching, "can_launch", lambda _: False)
    assert told() == by_kernels


@pytest.mark.parametrize("is_asked", [True, False])
def test_kernels_are_set_up_early_on_a_gpu_that_was_told_to(tmp_path: Path, device: str, is_asked: bool) -> None:
    executor = cuda(write_checkpoint(tmp_path / "tiny"), device, launches_early=is_asked)
    assert launching.early()["launch_pdl"] is (is_asked and device == "cuda")
    executor.shutdown()


def test_a_model_that_warms_up_leaves_the_launches_of_one_that_serves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "INTERPRETED", False)
    done: list[str] = []

    class Kernel:
        def warmup(self, *args: object, **options: object) -> None:
            done.append("compiled")

        def __getitem__(self, grid: object) -> object:
            return lambda *args, **options: done.append("launched")

    def serve() -> None:
        launching.start(Kernel(), (1,))  # type: ignore[arg-type]
        done.append(f"is compiling: {launching.is_compiling_ahead()}")

    with launching.compiling_ahead(1) as is_compiling:
        assert is_compiling
        launching.start(Kernel(), (1,))  # type: ignore[arg-type]
        serving = threading.Thread(target=serve)
        serving.start()
        serving.join()
    launching.start(Kernel(), (1,))  # type: ignore[arg-type]
    assert done == ["compiled", "launched", "is compiling: False", "launched"]
