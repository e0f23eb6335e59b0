"""Answers that were given before to exactly the same question, for when there is no room to answer anew.

Owns the kept answers: a bounded number of bytes, each for a bounded time, the least recently used first to go.
Invariant: a key covers the caller's tenant and everything in the body that the answer depends on, so no tenant finds
another's answers; only questions whose answer is determined (temperature 0, or a seed) have a key.
A cache of questions that mean the same begins here: `find` is the place where it is asked.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from headrace.api.anthropic_types import MessagesBody
from headrace.api.openai_types import GenerationBody
from headrace.core.caller import Caller
from headrace.core.delta import Delta, FinishReason
from headrace.core.protocols import Clock

_WHOLE = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS)
_ASIDE = {
    *("stream", "stream_options", "user", "metadata", "service_tier", "priority", "deadline_ms"),
    *("safety_identifier", "prompt_cache_key", "store"),
}
_DELTA_BYTES = 400  # in memory, about, besides its texts


@dataclass(frozen=True, slots=True)
class _Kept:
    deltas: tuple[Delta, ...]
    num_bytes: int
    until_s: float


def question_key(caller: Caller, path: str, body: GenerationBody | MessagesBody) -> bytes | None:
    """Return what names a question; None if its answer is not determined."""
    seed = body.seed if isinstance(body, GenerationBody) else None
    if body.temperature != 0 and seed is None:
        return None
    asked = {name: value for name, value in msgspec.structs.asdict(body).items() if name not in _ASIDE}
    whose = caller.tenant or caller.key_id
    return hashlib.sha256(msgspec.json.encode([whose, path, asked], order="deterministic")).digest()


class AnswerCache:
    """Kept answers by question and number of the request in its call."""

    def __init__(self, clock: Clock, max_bytes: int, keep_s: float) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._kept: OrderedDict[tuple[bytes, int], _Kept] = OrderedDict()
        self.num_bytes = 0

    def find(self, key: bytes, index: int) -> tuple[Delta, ...] | None:
        """Return a kept answer."""
        kept = self._kept.get((key, index))
        if kept is None:
            return None
        if kept.until_s <= self._clock.now():
            self._drop((key, index))
            return None
        self._kept.move_to_end((key, index))
        return kept.deltas

    def keep(self, key: bytes, index: int, deltas: list[Delta], n: int) -> None:
        """Keep an answer if it is whole and fits. It costs nothing when it is given again."""
        if sum(delta.finish in _WHOLE for delta in deltas) != n:
            return
        num_bytes = sum(_DELTA_BYTES + 4 * (len(delta.text) + len(delta.reasoning)) for delta in deltas)
        if num_bytes > self._max_bytes // 8:
            return
        self._drop((key, index))
        plain = tuple(_without_cost(delta) for delta in deltas)
        self._kept[key, index] = _Kept(plain, num_bytes, self._clock.now() + self._keep_s)
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, name: tuple[bytes, int]) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            self.num_bytes -= kept.num_bytes


def _without_cost(delta: Delta) -> Delta:
    usage = delta.usage
    if usage is not None:
        usage = msgspec.structs.replace(usage, cost_nano=0, engine_ns=0)
    return msgspec.structs.replace(delta, headers=(), usage=usage)
