"""`Graphs`: decode steps recorded once for each bucket of batch sizes and replayed as one launch.

Owns the recorded graphs and the tensors they write. Called by `executor.cuda.executor`.
Invariant: a graph is replayed only while everything it reads lies where it lay: its key names the bucket and the
generation of the staging buffer. On a device without graphs `run` simply runs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from headrace.core.step import Step

Outputs = tuple[torch.Tensor, torch.Tensor]
_WARM_RUNS = 2  # before recording: kernels are compiled, libraries have their workspaces


def buckets(max_rows: int) -> tuple[int, ...]:
    """Return the batch sizes that graphs are recorded for: 1, 2, 4, then multiples of 8."""
    sizes = [size for size in (1, 2, 4) if size < max_rows]
    return (*sizes, *range(8, max_rows, 8), max_rows)


class Graphs:
    """Records what it is given the first time a key is run, and replays it from then on."""

    def __init__(self, device: torch.device, sizes: tuple[int, ...]) -> None:
        self._device = device
        self._sizes = sizes
        self._recorded: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Outputs]] = {}
        self._pool: tuple[int, int] | None = None

    @property
    def largest(self) -> int:
        """Return the largest batch that a graph is recorded for."""
        return self._sizes[-1]

    def bucket_of(self, step: Step) -> int | None:
        """Return the bucket of a step of single tokens; None if it has longer rows, scores, or too many rows."""
        if any(len(row.tokens) != 1 or row.score for row in step.rows):
            return None
        return next((size for size in self._sizes if size >= len(step.rows)), None)

    def run(self, key: tuple[int, int], work: Callable[[], Outputs]) -> Outputs:
        """Return what `work` returns, from a replay where there is one. `work` may not read from the device."""
        if self._device.type != "cuda":
            return work()
        if key not in self._recorded:
            self._recorded = {known: graph for known, graph in self._recorded.items() if known[1] == key[1]}
            self._recorded[key] = self._record(work)
        graph, outputs = self._recorded[key]
        graph.replay()
        return outputs

    def forget(self) -> None:
        """Let go of every graph and its memory."""
        self._recorded = {}
        self._pool = None

    def _record(self, work: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph, Outputs]:
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_RUNS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = work()
        self._pool = graph.pool()
        return graph, outputs
