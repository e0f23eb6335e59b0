"""Which counters launches take: those of their executor, which nobody else's launches touch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.ops.cuda import attention, counters, linear, sampling
from headrace.testing.checkpoints import write_checkpoint


def test_each_executor_counts_in_memory_of_its_own(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def watched(where: torch.device) -> torch.Tensor:
        found = counters.counters_of(where)
        taken.append(found.data_ptr())
        return found

    for module in (attention, linear, sampling):
        monkeypatch.setattr(module, "counters_of", watched)
    path = write_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1)
    row = Row(SeqId(0), 0, (1, 2), (0,), SamplingParams(temperature=0.0))
    used: list[set[int]] = []
    for _ in range(2):
        with open_checkpoint(path) as checkpoint:
            executor = CudaExecutor(
                build_program(checkpoint.config), checkpoint, num_blocks=4, block_size=16,
                options=DeviceOptions(device=device, max_rows=2, max_step_tokens=16, is_warmed=False),
            )  # fmt: skip
        taken.clear()
        executor.launch(Step(0, (row,))).result()
        executor.logits(Step(1, (row,)))
        used.append(set(taken))
        assert used[-1] == {executor._counters.data_ptr()}
        assert not executor._counters.any()
    assert counters.counters_of(torch.device(device)).data_ptr() not in used[0] | used[1]
