"""What a GPU says when it fails, as whoever runs the server reads it."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from headrace.core.errors import EngineDead, OutOfMemory
from headrace.executor.cuda.executor import CudaExecutor
from headrace.executor.cuda.failures import named_failures
from headrace.executor.cuda.model import DeviceModel
from headrace.testing.checkpoints import write_checkpoint
from tests.gpu.test_executor import cuda


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with ..."),
        RuntimeError("Triton Error [CUDA]: an illegal instruction was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    ],
)
def test_an_error_of_the_device_ends_the_engine_with_what_to_do(error: RuntimeError) -> None:
    expected = pytest.raises(EngineDead, match=r"a step of 7 tokens: .*(illegal|CUBLAS).*start it again")
    with expected as found, named_failures("a step of 7 tokens", "lower it"):
        raise error
    assert found.value.__cause__ is error
    assert "\n" not in found.value.message


def test_too_little_memory_names_the_number_to_change() -> None:
    expected = pytest.raises(OutOfMemory, match=r"no memory for a step of 7 tokens; lower it .*2\.00 GiB")
    with expected, named_failures("a step of 7 tokens", "lower it"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


def test_an_error_of_the_code_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shape"), named_failures("a step", "lower it"):
        raise RuntimeError("shape mismatch")


def test_a_model_that_does_not_fit_leaves_nothing_behind(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[object]] = []
    make = DeviceModel.__init__

    def made(self: DeviceModel, *args: object, **options: object) -> None:
        make(self, *args, **options)  # type: ignore[arg-type]
        held.extend(weakref.ref(tensor) for tensor in (self.pool, self._logits, *self._vectors.values()))

    def warm_up(self: CudaExecutor, advance: object) -> None:
        scratch = torch.zeros(8)
        held.append(weakref.ref(scratch))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(DeviceModel, "__init__", made)
    monkeypatch.setattr(CudaExecutor, "_warm_up", warm_up)
    with pytest.raises(OutOfMemory) as found:  # held as long as somebody tells it
        cuda(write_checkpoint(tmp_path / "tiny"), device, is_warmed=True)
    assert len(held) > 5
    assert [ref for ref in held if ref() is not None] == []
    assert "KV pool" in found.value.message
