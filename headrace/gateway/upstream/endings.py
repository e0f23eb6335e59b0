"""The promise of every delta stream, kept for upstreams that may break off: one ending per choice, usage at the end.

Owns which choices of one request are still open and what has come of them.
Invariant: after an ending nothing of that choice passes; `fail` ends all that is open, the last with the usage.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.core.conversation import Conversation, TextPart, ToolResultPart
from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.request import Request

_BYTES_PER_TOKEN = 4  # where nobody has counted


class Endings:
    """Watches the deltas of one request."""

    def __init__(self, request: Request) -> None:
        self._open = set(range(request.n))
        self._request = request
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
        if delta.text:
            self._num_bytes += len(delta.text) if delta.text.isascii() else len(delta.text.encode())
        if delta.token_ids:
            self._num_tokens += len(delta.token_ids)
        if delta.reasoning or delta.refusal:
            self._num_bytes += _bytes_in(delta.reasoning) + _bytes_in(delta.refusal)
        for call in delta.tool_calls:
            self._num_bytes += _bytes_in(call.arguments)
        if delta.finish is not None:
            self._open.discard(delta.index)

    def usage(self) -> Usage:
        """Estimate the usage of what has passed."""
        estimate = -(-self._num_bytes // _BYTES_PER_TOKEN)
        return Usage(
            prompt_tokens=prompt_tokens(self._request),
            completion_tokens=self._num_tokens or estimate,
            is_estimate=True,
        )

    def fail(self, error: str) -> Iterator[Delta]:
        """End what is open."""
        for index in sorted(self._open):
            self._open.discard(index)
            usage = None if self._open else self.usage()
            yield Delta(index=index, finish=FinishReason.ERROR, error=error, usage=usage)


def _bytes_in(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def asked(request: Request) -> Usage:
    """Estimate the usage of a request that was sent and to which nothing came back."""
    return Usage(prompt_tokens=prompt_tokens(request), completion_tokens=0, is_estimate=True)


def prompt_tokens(request: Request) -> int:
    """Count the prompt's tokens, or estimate them from its words where nothing here has counted."""
    if request.prompt or request.source is None:
        return len(request.prompt)
    if isinstance(request.source, Conversation):
        parts = [part for message in request.source.messages for part in message.parts]
        parts += [inner for part in parts if isinstance(part, ToolResultPart) for inner in part.parts]
        num_bytes = sum(len(part.text.encode()) for part in parts if isinstance(part, TextPart))
    else:
        num_bytes = len(request.source.encode())
    return -(-num_bytes // _BYTES_PER_TOKEN)
