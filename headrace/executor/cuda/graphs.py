"""`Graphs`: decode steps recorded once for each kind and replayed as one launch.

A kind is a bucket of batch sizes, and whether all of its rows are greedy.
Owns the recorded graphs and the memory that they compute in, one pool for all: no two run at a time. Called by
`executor.cuda.decode`; the executor has every kind recorded before the first request, the largest first, so that the
others find room in what it took.
Invariant: what a graph reads and what it returns lies where it lay: in the fixed staging buffer, the model's slots, the
KV pool. Other threads may use the device while one records. Where recording fails, steps run op by op, with a warning.
On a device without graphs `run` simply runs.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import torch

from headrace.core.step import Step
from headrace.ops.cuda.launching import failed_kernels, is_compiling_ahead

Kind = tuple[int, bool]
Outputs = tuple[torch.Tensor, torch.Tensor | None]
_WARM_RUNS = 2  # before recording: kernels are compiled, libraries have their workspaces
_WAITS_FOR_DEVICE = "attention"  # the one kernel whose plain op reads sizes back, which no graph can
_log = logging.getLogger(__name__)


def buckets(max_rows: int) -> tuple[int, ...]:
    """Return the batch sizes that graphs are recorded for: finer where a padded row costs a larger share."""
    sizes = [*(1, 2, 4), *range(8, 64, 8), *range(64, 128, 16), *range(128, max_rows, 32)]
    return (*(size for size in sizes if size < max_rows), max_rows)


class Graphs:
    """Records what it is given in a dry run of a kind, and replays it from then on."""

    def __init__(self, device: torch.device, sizes: tuple[int, ...], *, is_recording: bool = True) -> None:
        self.sizes = sizes
        self._device = device
        self._is_recording = is_recording and device.type == "cuda"
        self._recorded: dict[Kind, tuple[torch.cuda.CUDAGraph, Outputs]] = {}
        self._pool: tuple[int, int] | None = None
        self._beside: torch.cuda.Stream | None = None  # one for all: a library keeps 32 MiB for each that it has seen

    @property
    def num_recorded(self) -> int:
        """Count the kinds of steps that are replayed."""
        return len(self._recorded)

    def bucket_of(self, step: Step) -> int | None:
        """Return the bucket of a step of single tokens; None if it has longer rows, scores, or too many rows."""
        if [row for row in step.rows if len(row.tokens) != 1 or row.score]:  # unlike any(), no call for each
            return None
        return next((size for size in self.sizes if size >= len(step.rows)), None)

    def run(self, kind: Kind, work: Callable[[], Outputs], *, is_dry_run: bool) -> Outputs:
        """Return what `work` returns, from a replay where there is one. `work` may not read from the device.

        is_dry_run  nobody reads the answers: it may be recorded, for which it is run several times
        """
        known = self._recorded.get(kind)
        if known is None and is_dry_run and self._is_recording and not is_compiling_ahead():
            known = self._try_record(kind, work)
        if known is None:
            return work()
        graph, outputs = known
        graph.replay()
        return outputs

    def forget(self) -> None:
        """Let go of every graph and its memory."""
        self._recorded = {}
        self._pool = None
        self._is_recording = False

    def _try_record(self, kind: Kind, work: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph, Outputs] | None:
        here = torch.cuda.current_stream(self._device)
        beside = self._beside = self._beside or torch.cuda.Stream(self._device)
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            for _ in range(_WARM_RUNS):
                work()
        here.wait_stream(beside)
        if _WAITS_FOR_DEVICE in failed_kernels():
            self._give_up(f"kernel '{_WAITS_FOR_DEVICE}' does not compile here")
            return None
        gc.collect()  # nothing that lies on the device may be let go of while recording
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.stream(beside):
                # Only this thread's calls are watched: another one may be loading a model.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    outputs = work()
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)  # raises again if it is the device that failed
            self._give_up(str(error).splitlines()[0])
            return None
        self._recorded[kind] = graph, outputs
        return self._recorded[kind]

    def _give_up(self, reason: str) -> None:
        self._is_recording = False
        _log.warning("decode steps cannot be recorded as graphs here, they run op by op and slower: %s", reason)
