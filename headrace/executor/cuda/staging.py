"""`Staging`: everything a step brings to the device, in one copy.

Owns: a few pinned host buffers, used in turn, and the device buffer that they are copied to, which never moves: what
fits there lies at the same address in every step that sends arrays of the same sizes in the same order, and so recorded
graphs read it. What does not fit (a step's penalties over long histories) goes to a second buffer, which grows.
Invariant: a host buffer is written again only after its copy is done; the device's is overwritten in the order of the
queue, so behind the step that reads it. For one thread.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.executor.cuda.queues import Mark, Queue, Queues

_ALIGNED = 64
_NUM_HOST = 3  # two steps may be pending while a third is written
_TYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.float64): torch.float64, np.dtype(np.float32): torch.float32}

Arrays = list[NDArray[np.generic]]


class _Buffer:
    """A device buffer and the host buffers that are copied to it."""

    def __init__(self, device: torch.device, queues: Queues, capacity: int) -> None:
        self.capacity = capacity
        self._queues = queues
        self._turn = 0
        self._device = torch.empty(capacity, dtype=torch.uint8, device=device)
        is_gpu = device.type == "cuda"
        self._hosts = [torch.empty(capacity, dtype=torch.uint8, pin_memory=is_gpu) for _ in range(_NUM_HOST)]
        self._copied: list[Mark | None] = [None] * _NUM_HOST

    def send(self, arrays: Arrays) -> list[torch.Tensor]:
        self._turn = (self._turn + 1) % _NUM_HOST
        host, copied = self._hosts[self._turn], self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        held = host.numpy()
        sent: list[torch.Tensor] = []
        end = 0
        for array in arrays:
            held[end : end + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            there = self._device[end : end + array.nbytes]
            sent.append(there.view(_TYPES[array.dtype]).view(array.shape))
            end += _room(array)
        self._queues.run(Queue.COMPUTE, partial(self._device[:end].copy_, host[:end], non_blocking=True))
        self._copied[self._turn] = self._queues.mark(Queue.COMPUTE)
        return sent


class Staging:
    """Copies arrays together. `capacity` bytes of them stay where graphs can read them."""

    def __init__(self, device: torch.device, queues: Queues, capacity: int) -> None:
        self._device = device
        self._queues = queues
        self._fixed = _Buffer(device, queues, capacity)
        self._more: _Buffer | None = None

    def send(self, arrays: Arrays) -> list[torch.Tensor]:
        """Copy arrays to the device, asynchronously; return them there, in order, valid until the next call."""
        num_fixed = end = 0
        while num_fixed < len(arrays) and end + _room(arrays[num_fixed]) <= self._fixed.capacity:
            end += _room(arrays[num_fixed])
            num_fixed += 1
        sent = self._fixed.send(arrays[:num_fixed])
        if num_fixed == len(arrays):
            return sent
        return sent + self._growing(sum(map(_room, arrays[num_fixed:]))).send(arrays[num_fixed:])

    def _growing(self, num_bytes: int) -> _Buffer:
        if self._more is None or self._more.capacity < num_bytes:
            # A larger one is rare. Nothing may still read the old one, or copy from it, when it is let go of.
            self._queues.mark(Queue.COMPUTE).synchronize()
            self._more = _Buffer(self._device, self._queues, 2 * num_bytes)
        return self._more


def _room(array: NDArray[np.generic]) -> int:
    return -(-array.nbytes // _ALIGNED) * _ALIGNED
