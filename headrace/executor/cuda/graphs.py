"""`Graphs`: steps recorded once for each kind and replayed as one launch.

A kind is a bucket, and whether all of its rows are drawn as greedy ones.
Owns the recorded graphs, the stream they are recorded on and the memory that they compute in, one pool for all: no two
run at a time. Called by `executor.cuda.recorded`; the executor has every kind recorded before the first request, the
largest first, so that the others find room in what it took: which they do on the same stream only, since the
allocator's memory is a stream's own, as are the workspaces of the vendor's library.
Invariant: what a graph reads and what it returns lies where it lay: in the fixed staging buffer, the model's slots, the
KV pool. Other threads may use the device while one records. Where recording fails, steps run op by op, with a warning.
On a device without graphs `run` simply runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import torch

from headrace.core.collector import collector_paused
from headrace.executor.cuda.buckets import Bucket
from headrace.ops.cuda.launching import failed_kernels, is_compiling_ahead

Kind = tuple[Bucket, bool]
Outputs = tuple[torch.Tensor, torch.Tensor | None]
_WARM_RUNS = 2  # before recording: kernels are compiled, libraries have their workspaces
_WAITS_FOR_DEVICE = "attention"  # the one kernel whose plain op reads sizes back, which no graph can
_log = logging.getLogger(__name__)


class Graphs:
    """Records what it is given in a dry run of a kind, and replays it from then on."""

    def __init__(self, device: torch.device, *, is_recording: bool = True) -> None:
        self._device = device
        self._is_recording = is_recording and device.type == "cuda"
        self._recorded: dict[Kind, tuple[torch.cuda.CUDAGraph, Outputs]] = {}
        self._pool: tuple[int, int] | None = None
        self._beside: torch.cuda.Stream | None = None  # one for all: memory is a stream's own

    @property
    def num_recorded(self) -> int:
        """Count the kinds of steps that are replayed."""
        return len(self._recorded)

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

    def give_back(self) -> None:
        """Give back what steps took that were run to be recorded: nothing else runs on their stream."""
        if self._beside is not None:
            torch.cuda.empty_cache()

    def forget(self) -> None:
        """Let go of every graph and its memory."""
        self._recorded = {}
        self._pool = self._beside = None
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
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            # Nothing that lies on the device may be let go of by the garbage collector meanwhile.
            with torch.cuda.stream(beside), collector_paused():
                # Only this thread's calls are watched: another one may be loading a model.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    outputs = work()
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)  # raises again if it is the device that failed
            with suppress(RuntimeError):
                # Of a recording that broke the allocator has not been told the end: it would never free anything again.
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
            self._give_up(str(error).splitlines()[0])
            return None
        self._recorded[kind] = graph, outputs
        return self._recorded[kind]

    def _give_up(self, reason: str) -> None:
        self._is_recording = False
        _log.warning("steps cannot be recorded as graphs here, they run op by op and slower: %s", reason)
