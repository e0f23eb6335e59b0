"""The promise of every delta stream, kept for upstreams that may break off: one ending per choice, usage at the end.

Owns which choices of one request are still open and what has come of them.
Invariant: after an ending nothing of that choice passes; `fail` ends all that is open, the last with the usage.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.core.delta import Delta, FinishReason, Usage

_BYTES_PER_TOKEN = 4  # where nobody has counted


class Endings:
    """Watches the deltas of one request with `n` choices."""

    def __init__(self, n: int, prompt_tokens: int) -> None:
        self._open = set(range(n))
        self._prompt_tokens = prompt_tokens
        self._num_bytes = 0
        self._num_tokens = 0

    @property
    def is_complete(self) -> bool:
        """Say whether every choice has ended."""
        return not self._open

    def is_open(self, index: int) -> bool:
        """Say whether that choice has not ended."""
        return index in self._open

    def see(self, delta: Delta) -> None:
        """Note a delta that passes."""
        self._num_tokens += len(delta.token_ids)
        self._num_bytes += len(delta.text.encode()) + len(delta.reasoning.encode()) + len(delta.refusal.encode())
        self._num_bytes += sum(len(call.arguments.encode()) for call in delta.tool_calls)
        if delta.finish is not None:
            self._open.discard(delta.index)

    def usage(self) -> Usage:
        """Estimate the usage of what has passed."""
        estimate = -(-self._num_bytes // _BYTES_PER_TOKEN)
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._num_tokens or estimate,
            is_estimate=True,
        )

    def fail(self, error: str) -> Iterator[Delta]:
        """End what is open."""
        for index in sorted(self._open):
            self._open.discard(index)
            usage = None if self._open else self.usage()
            yield Delta(index=index, finish=FinishReason.ERROR, error=error, usage=usage)
