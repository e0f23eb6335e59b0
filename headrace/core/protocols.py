"""The seams. Each has at most five methods; implementations live above, users import only these."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Generic, Protocol, TypeVar

from headrace.core.delta import Delta
from headrace.core.request import Request
from headrace.core.step import Step, StepResult

T_co = TypeVar("T_co", covariant=True)


class Clock(Protocol):
    """Monotonic time in seconds. Real in production, virtual in simulation and tests."""

    def now(self) -> float:
        """Return seconds since an arbitrary start; never goes back."""
        ...


class Pending(Protocol, Generic[T_co]):
    """A result that is being made."""

    def result(self) -> T_co:
        """Wait for the result; raises what the work raised."""
        ...


class HostMemory(Protocol):
    """Slots in host memory, each with room for the bytes of one KV block."""

    def slot(self, index: int) -> memoryview:
        """Return the writable bytes of a slot."""
        ...


class Executor(Protocol):
    """Carries out Steps in order. Knows tensors, never queues."""

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV pool."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        ...

    def launch(self, step: Step) -> Pending[StepResult]:
        """Start a step and return at once; at most two may be pending."""
        ...

    def shutdown(self) -> None:
        """Free device memory and stop workers. Idempotent."""
        ...


class Upstream(Protocol):
    """Anything that answers a Request with a stream of deltas: an engine, a remote server, a cache."""

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Stream the answer. Closing the iterator early aborts the work."""
        ...
