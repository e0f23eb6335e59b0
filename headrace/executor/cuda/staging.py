"""`Staging`: everything a step brings to the device, in one copy.

Owns: a few pinned host buffers, used in turn, and the device buffer they are copied to. For one thread.
Invariant: arrays put in the same order with the same sizes land at the same addresses, which is what lets a recorded
graph read them; a host buffer is written again only after its copy is done.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNED = 64
_NUM_HOST = 3  # two steps may be pending while a third is written
_TYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.float64): torch.float64, np.dtype(np.float32): torch.float32}


class Staging:
    """Copies arrays of up to `capacity` bytes together; grows when a step needs more."""

    def __init__(self, device: torch.device, capacity: int) -> None:
        self._device = device
        self._is_gpu = device.type == "cuda"
        self._turn = 0
        self._generation = 0
        self._allocate(capacity)

    @property
    def generation(self) -> int:
        """Changes when the device buffer has moved: graphs that read the old one are void."""
        return self._generation

    def send(self, arrays: list[NDArray[np.generic]]) -> list[torch.Tensor]:
        """Copy arrays to the device, asynchronously; return them there, in order, valid until the next call."""
        places: list[int] = []
        end = 0
        for array in arrays:
            places.append(end)
            end += -(-array.nbytes // _ALIGNED) * _ALIGNED
        if end > self._capacity:
            if self._is_gpu:
                torch.cuda.synchronize(self._device)
            self._allocate(2 * end)
        self._turn = (self._turn + 1) % _NUM_HOST
        host, event = self._hosts[self._turn], self._events[self._turn]
        if event is not None:
            event.synchronize()
        held = host.numpy()
        for at, array in zip(places, arrays, strict=True):
            held[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._buffer[:end].copy_(host[:end], non_blocking=True)
        if event is not None:
            event.record()
        return [
            self._buffer[at : at + array.nbytes].view(_TYPES[array.dtype]).view(array.shape)
            for at, array in zip(places, arrays, strict=True)
        ]

    def _allocate(self, capacity: int) -> None:
        self._capacity = capacity
        self._generation += 1
        self._buffer = torch.empty(capacity, dtype=torch.uint8, device=self._device)
        self._hosts = [torch.empty(capacity, dtype=torch.uint8, pin_memory=self._is_gpu) for _ in range(_NUM_HOST)]
        self._events = [torch.cuda.Event() if self._is_gpu else None for _ in range(_NUM_HOST)]
