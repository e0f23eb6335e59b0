"""`Staging`: everything a step brings to the device, in one copy.

Owns: a few pinned host buffers, used in turn, and the device buffer that they are copied to, which never moves: what
fits there lies at the same address in every step that sends arrays of the same sizes in the same order, and so recorded
graphs read it. What does not fit (a step's penalties over long histories) goes to a second buffer, which grows.
A frame is a set of arrays that is sent again and again: it is written where it is copied from.
Invariant: a host buffer is written again only after its copy is done; the device's is overwritten in the order of the
queue, so behind the step that reads it. For one thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.executor.cuda.queues import Mark, Queue, Queues

_ALIGNED = 64
_NUM_HOST = 3  # two steps may be pending while a third is written
_TYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.float64): torch.float64, np.dtype(np.float32): torch.float32}

Arrays = list[NDArray[np.generic]]
Ints = NDArray[np.int32]
Fields = Mapping[str, tuple[int, ...]]


class Frame:
    """Arrays of int32 by name, at the front of the device's buffer."""

    def __init__(self, fields: Fields, device: torch.Tensor, hosts: list[torch.Tensor]) -> None:
        """Lay the arrays out. Raises ValueError if they do not fit."""
        self.there: dict[str, torch.Tensor] = {}
        self.here: list[dict[str, Ints]] = [{} for _ in hosts]
        self.end = 0
        for name, shape in fields.items():
            num_bytes = math.prod(shape) * 4
            part = slice(self.end, self.end + num_bytes)
            self.there[name] = device[part].view(torch.int32).view(shape)
            for arrays, host in zip(self.here, hosts, strict=True):
                arrays[name] = host.numpy()[part].view(np.int32).reshape(shape)
            self.end += -(-num_bytes // _ALIGNED) * _ALIGNED
        if self.end > len(device):
            raise ValueError(f"{self.end:,} bytes that are sent in one step; the buffer for them has {len(device):,}")
        self.copies = [partial(device[: self.end].copy_, host[: self.end], non_blocking=True) for host in hosts]


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

    def frame(self, fields: Fields) -> Frame:
        return Frame(fields, self._device, self._hosts)

    def turn(self) -> int:
        """Go on to the next host buffer, once it has been copied from, and return its number."""
        self._turn = (self._turn + 1) % _NUM_HOST
        if (copied := self._copied[self._turn]) is not None:
            copied.synchronize()
        return self._turn

    def send_frame(self, frame: Frame) -> None:
        """Copy what was written to a frame in the buffer in turn."""
        self._queues.run(Queue.COMPUTE, frame.copies[self._turn])
        self._copied[self._turn] = self._queues.mark(Queue.COMPUTE)

    def send(self, arrays: Arrays, first: int = 0) -> list[torch.Tensor]:
        """Copy what is in front of byte `first` of the buffer in turn, and arrays behind it."""
        host = self._hosts[self._turn]
        held = host.numpy()
        sent: list[torch.Tensor] = []
        end = first
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
        self._fixed.turn()
        return self._send(arrays, 0)

    def frame(self, fields: Fields) -> Frame:
        """Lay a frame out. Raises ValueError if it does not fit what graphs can read."""
        return self._fixed.frame(fields)

    def open(self, frame: Frame) -> dict[str, Ints]:
        """Return a frame's arrays to write to, all of them: they hold what an earlier step has left there."""
        return frame.here[self._fixed.turn()]

    def close(self, frame: Frame, more: Arrays) -> list[torch.Tensor]:
        """Send what was written to the frame opened last, and other arrays with it, which are returned as by `send`."""
        if more:
            return self._send(more, frame.end)
        self._fixed.send_frame(frame)
        return []

    def _send(self, arrays: Arrays, first: int) -> list[torch.Tensor]:
        num_fixed, end = 0, first
        while num_fixed < len(arrays) and end + _room(arrays[num_fixed]) <= self._fixed.capacity:
            end += _room(arrays[num_fixed])
            num_fixed += 1
        sent = self._fixed.send(arrays[:num_fixed], first)
        if num_fixed == len(arrays):
            return sent
        more = self._growing(sum(map(_room, arrays[num_fixed:])))
        more.turn()
        return sent + more.send(arrays[num_fixed:])

    def _growing(self, num_bytes: int) -> _Buffer:
        if self._more is None or self._more.capacity < num_bytes:
            # A larger one is rare. Nothing may still read the old one, or copy from it, when it is let go of.
            self._queues.mark(Queue.COMPUTE).synchronize()
            self._more = _Buffer(self._device, self._queues, 2 * num_bytes)
        return self._more


def _room(array: NDArray[np.generic]) -> int:
    return -(-array.nbytes // _ALIGNED) * _ALIGNED
