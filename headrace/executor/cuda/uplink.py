"""`Uplink`: bytes of mapped files on their way to the device, while the next ones are read.

Owns two pinned buffers, used in turn. Called by `load_weights`, one thread.
Invariant: a buffer is written again only after its copy is done. What is returned lies in memory of its own.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.executor.cuda.queues import Mark, Queue, Queues

_NUM_BUFFERS = 2


class Uplink:
    """Copies arrays of bytes to a device."""

    def __init__(self, device: torch.device, queues: Queues) -> None:
        self._device = device
        self._queues = queues
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * _NUM_BUFFERS
        self._copied: list[Mark | None] = [None] * _NUM_BUFFERS
        self._turn = 0

    def bring(self, data: NDArray[np.uint8]) -> torch.Tensor:
        """Return the bytes on the device, in the shape that they have. The array may be unmapped at once."""
        self._turn = (self._turn + 1) % _NUM_BUFFERS
        if (copied := self._copied[self._turn]) is not None:
            copied.synchronize()
        if len(self._buffers[self._turn]) < data.size:
            self._buffers[self._turn] = torch.empty(
                data.size, dtype=torch.uint8, pin_memory=self._device.type == "cuda"
            )
        host = self._buffers[self._turn][: data.size].view(data.shape)
        host.numpy()[...] = data
        there = torch.empty(data.shape, dtype=torch.uint8, device=self._device)
        self._queues.run(Queue.COMPUTE, partial(there.copy_, host, non_blocking=True))
        self._copied[self._turn] = self._queues.mark(Queue.COMPUTE)
        return there
