"""The seams: what one part of Headrace asks of another, without knowing which.

Owns nothing. Each has at most five methods; implementations live above, users import only these.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
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

    def whole(self) -> memoryview:
        """Return all of the memory in one piece, whatever lies between slots included."""
        ...


class Transport(Protocol):
    """Carries frames, sealed KV blocks, by key to another place and back: a disk, a server, another worker.

    Used by one I/O thread, which may wait in it. Raises OSError when the place fails.
    """

    num_bytes: int  # what it keeps here, as far as it knows

    def has(self, keys: Sequence[bytes]) -> int:
        """Count the leading keys that are there."""
        ...

    def get(self, keys: Sequence[bytes], into: Sequence[memoryview]) -> list[int | None]:
        """Read one frame into each buffer; return the frames' bytes, None where there is none."""
        ...

    def put(self, key: bytes, frame: memoryview, saves_s: float) -> bool:
        """Keep a frame that saves `saves_s` seconds when it is used; False if others are worth more."""
        ...

    def drop(self, key: bytes) -> None:
        """Forget a key."""
        ...

    def close(self) -> None:
        """Let go of connections. Idempotent."""
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
