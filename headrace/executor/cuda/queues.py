"""The device's two queues of work, and marks on them: the one that computes, and one that copies beside it.

Owns: the copying stream. Called by `executor.cuda` wherever the order between the host and two queues matters.
Work given to a queue starts in the order given. Between queues, and between a queue and the host, only marks order
anything: a mark is passed when all that its queue was given before it is done.
On a device without streams everything is done when it is given, and every mark is passed already. Tests put a third
implementation here, which does the work as late and in as unlucky an order as the marks allow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import torch


class Queue(Enum):
    """Which of the two."""

    COMPUTE = "compute"
    COPY = "copy"


class Mark(Protocol):
    """A point in a queue's work."""

    def synchronize(self) -> None:
        """Let the host wait until it is passed."""
        ...

    def seconds_since(self, earlier: Mark) -> float:
        """Return the device's time between two passed marks of one queue."""
        ...


class Queues(Protocol):
    """What a device does in order. Used by one thread."""

    def run(self, queue: Queue, work: Callable[[], object]) -> None:
        """Give work to a queue: calls that only start something on the device."""
        ...

    def mark(self, queue: Queue) -> Mark:
        """Mark the end of what a queue has been given so far."""
        ...

    def wait(self, queue: Queue, mark: Mark) -> None:
        """Let what the queue is given from now on start after a mark of the other queue. The host does not wait."""
        ...


def open_queues(device: torch.device) -> Queues:
    """Return the queues of a device."""
    return GpuQueues(device) if device.type == "cuda" else HostQueues()


class _Event:
    """A CUDA event. The host sleeps while it waits: another thread can have its core."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event(enable_timing=True, blocking=True)
        self.event.record(stream)

    def synchronize(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _Event)
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class GpuQueues:
    """The stream that is current where work is given, and one beside it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._beside = torch.cuda.Stream(device)

    def run(self, queue: Queue, work: Callable[[], object]) -> None:
        if queue is Queue.COMPUTE:
            work()
            return
        with torch.cuda.stream(self._beside):
            work()

    def mark(self, queue: Queue) -> Mark:
        return _Event(self._stream(queue))

    def wait(self, queue: Queue, mark: Mark) -> None:
        assert isinstance(mark, _Event)
        self._stream(queue).wait_event(mark.event)

    def _stream(self, queue: Queue) -> torch.cuda.Stream:
        return self._beside if queue is Queue.COPY else torch.cuda.current_stream(self._device)


class _Passed:
    """A mark that was passed when it was set."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        return

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _Passed)
        return self.at - earlier.at


class HostQueues:
    """For torch's CPU device: work is done when it is given."""

    def run(self, queue: Queue, work: Callable[[], object]) -> None:
        work()

    def mark(self, queue: Queue) -> Mark:
        return _Passed()

    def wait(self, queue: Queue, mark: Mark) -> None:
        return
