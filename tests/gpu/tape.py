"""A recorded graph where there is no GPU: the ops and kernels of one run, which are then done again as they were."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import headrace.ops.cuda
from headrace.executor.cuda.executor import CudaExecutor
from headrace.executor.cuda.graphs import Kind, Outputs

READS = {"_local_scalar_dense", "nonzero", "item", "equal"}  # what no graph can do: the host waits for it


class Tape(TorchDispatchMode):
    """Keeps what reaches the device, with the memory that each op reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []
        self.is_kernel = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        assert name not in READS, f"{name} waits for the device"
        if not (self.is_kernel or name.startswith("empty") or (func.is_view and is_alias(out, args))):
            self.calls.append(lambda: self._again(func(*args, **kwargs), out))
        return out

    def keep(self, start: Callable[..., object]) -> Callable[..., object]:
        """Return `launching.start` that keeps what it starts."""

        def kept(*args: object, **options: object) -> None:
            was_kernel, self.is_kernel = self.is_kernel, True
            start(*args, **options)
            self.is_kernel = was_kernel
            self.calls.append(lambda: start(*args, **options))

        return kept

    @staticmethod
    def _again(found: object, kept: object) -> None:
        if isinstance(found, torch.Tensor) and isinstance(kept, torch.Tensor) and found.data_ptr() != kept.data_ptr():
            kept.copy_(found)


def is_alias(out: object, args: tuple[object, ...]) -> bool:
    """Say whether an op gave a view of what it was given: `to` does so or not."""
    first = out[0] if isinstance(out, list | tuple) else out
    assert isinstance(first, torch.Tensor)
    place = first.untyped_storage().data_ptr()
    return any(isinstance(arg, torch.Tensor) and arg.untyped_storage().data_ptr() == place for arg in args)


class Tapes:
    """Stands in for `Graphs`: the first run of a kind is taped, and whatever comes later is the tape."""

    def __init__(self, executor: CudaExecutor, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._kept: dict[Kind, tuple[Tape, Outputs]] = {}
        executor._graphs = executor._recorded._graphs = self  # type: ignore[assignment]

    num_recorded = 0

    def run(self, kind: Kind, work: Callable[[], Outputs], *, is_dry_run: bool) -> Outputs:
        if kind not in self._kept:
            tape = Tape()
            with self._patch.context() as patch:
                for found in pkgutil.iter_modules(headrace.ops.cuda.__path__):
                    module = importlib.import_module(f"headrace.ops.cuda.{found.name}")
                    if hasattr(module, "start"):
                        patch.setattr(module, "start", tape.keep(module.start))
                with tape:
                    outputs = work()
            self._kept[kind] = tape, outputs
            return outputs
        tape, outputs = self._kept[kind]
        for call in tape.calls:
            call()
        return outputs

    def forget(self) -> None:
        self._kept = {}
