"""Executors and places below the pool that fail when told to: the same decorators for tests and for drills.

Owns nothing but what is left of a plan. A plan is called for each step, or each call of a transport, and returns the
fault to inject or None. Faults of a step:

    raise   launch or result raises        nan     rows fail, the others stand       short  a sample is missing
    delay   the step takes longer          hang    the result never comes, until `release`

Faults of a transport: `raise` (OSError), `delay`, `flip` (a bit of what is read), `cut` (fewer bytes are read than were
put), `hang`. Time is told through `sleep`, so a test needs none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from headrace.core.protocols import Executor, Pending, Transport
from headrace.core.request import SeqId
from headrace.core.step import Step, StepResult

_HANG_LIMIT_S = 60.0  # a test that forgets to release ends all the same


class StepFault(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong with a step. `seq_ids` are the rows of `nan`; none means all."""

    kind: Literal["raise_launch", "raise", "nan", "short", "delay", "hang"]
    seq_ids: frozenset[SeqId] = frozenset()
    seconds: float = 0.0


class TransportFault(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong with a call of a transport."""

    kind: Literal["raise", "flip", "cut", "delay", "hang"]
    seconds: float = 0.0


class FaultyExecutor:
    """An executor whose steps fail by plan. Warm-up is left alone. Implements `core.protocols.Executor`."""

    def __init__(
        self,
        inner: Executor,
        plan: Callable[[Step], StepFault | None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._inner = inner
        self._plan = plan
        self._sleep = sleep
        self._released = threading.Event()

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV pool."""
        return self._inner.num_blocks

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._inner.block_size

    def launch(self, step: Step) -> Pending[StepResult]:
        """Start a step, or fail to."""
        fault = None if step.is_dry_run else self._plan(step)
        if fault is not None and fault.kind == "raise_launch":
            raise RuntimeError(f"injected: step {step.step_id} was not launched")
        pending = self._inner.launch(step)
        return pending if fault is None else _FaultyPending(self, pending, step, fault)

    def shutdown(self) -> None:
        """Shut the inner executor down; whoever hangs goes on."""
        self.release()
        self._inner.shutdown()

    def release(self) -> None:
        """Let hanging steps go on, and hang no more."""
        self._released.set()

    def spoil(self, step: Step, pending: Pending[StepResult], fault: StepFault) -> StepResult:
        """Wait for a step's result and put the fault in."""
        if fault.kind == "hang":
            self._released.wait(_HANG_LIMIT_S)
        elif fault.kind == "delay":
            self._sleep(fault.seconds)
        result = pending.result()
        match fault.kind:
            case "raise":
                raise RuntimeError(f"injected: step {step.step_id} failed")
            case "short":
                return msgspec.structs.replace(result, samples=result.samples[:-1])
            case "nan":
                return _without(step, result, fault.seq_ids)
            case _:
                return result


class _FaultyPending:
    """A step that will go wrong."""

    def __init__(self, executor: FaultyExecutor, pending: Pending[StepResult], step: Step, fault: StepFault) -> None:
        self._executor = executor
        self._pending = pending
        self._step = step
        self._fault = fault

    def result(self) -> StepResult:
        """Wait for the result, as it comes."""
        return self._executor.spoil(self._step, self._pending, self._fault)


class FaultyTransport:
    """A place below the pool that fails by plan, which is given the call's name. Implements `Transport`."""

    def __init__(
        self,
        inner: Transport,
        plan: Callable[[str], TransportFault | None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._inner = inner
        self._plan = plan
        self._sleep = sleep
        self._released = threading.Event()

    @property
    def num_bytes(self) -> int:
        """What the inner place keeps."""
        return self._inner.num_bytes

    @num_bytes.setter
    def num_bytes(self, value: int) -> None:
        self._inner.num_bytes = value

    def has(self, keys: Sequence[bytes]) -> int:
        """Count the leading keys that are there."""
        self._meet("has")
        return self._inner.has(keys)

    def get(self, keys: Sequence[bytes], into: Sequence[memoryview]) -> list[int | None]:
        """Read frames, perhaps not as they were put."""
        kind = self._meet("get")
        sizes = self._inner.get(keys, into)
        if kind == "flip":
            for size, buffer in zip(sizes, into, strict=True):
                if size:
                    buffer[size // 2] ^= 1
        return [size and size // 2 for size in sizes] if kind == "cut" else sizes

    def put(self, key: bytes, frame: memoryview, saves_s: float) -> bool:
        """Keep a frame."""
        self._meet("put")
        return self._inner.put(key, frame, saves_s)

    def drop(self, key: bytes) -> None:
        """Forget a key."""
        self._meet("drop")
        self._inner.drop(key)

    def close(self) -> None:
        """Let go of connections; whoever hangs goes on."""
        self.release()
        self._inner.close()

    def release(self) -> None:
        """Let hanging calls go on, and hang no more."""
        self._released.set()

    def _meet(self, call: str) -> str | None:
        """Let a fault happen that comes before the call; return its kind."""
        fault = self._plan(call)
        if fault is None:
            return None
        if fault.kind == "raise":
            raise OSError(f"injected: {call} failed")
        if fault.kind == "delay":
            self._sleep(fault.seconds)
        elif fault.kind == "hang":
            self._released.wait(_HANG_LIMIT_S)
        return fault.kind


def _without(step: Step, result: StepResult, seq_ids: frozenset[SeqId]) -> StepResult:
    """Return a result in which some rows came to no number."""
    failing = [row.seq_id for row in step.rows if not seq_ids or row.seq_id in seq_ids]
    samples = [None if row.seq_id in failing else sample for row, sample in zip(step.rows, result.samples, strict=True)]
    failures = {**result.failures, **dict.fromkeys(failing, "injected: the logits are not finite")}
    return msgspec.structs.replace(result, samples=tuple(samples), failures=failures)
