"""Logprobs of text completions: four parallel columns, filled as tokens arrive.

Invariant: `text_offset` counts characters from the start of the choice's text, over all chunks of a stream.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.api.openai_replies import TextLogprobs
from headrace.core.delta import PositionLogprobs
from headrace.text import Tokenizer


class LogprobColumns:
    """Columns of one choice; `take` hands over what has come since the last time. No tokenizer for remote models."""

    def __init__(self, tokenizer: Tokenizer | None, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = 0
        self._columns = self._empty()

    def add_prompt(self, prompt: Sequence[int], scored: Sequence[PositionLogprobs | None]) -> None:
        """Add the prompt's own tokens; the first has no logprob."""
        assert self._tokenizer is not None, "a remote upstream adds the prompt's own columns"
        for i, token_id in enumerate(prompt):
            position = scored[i] if i < len(scored) else None
            self._add(self._tokenizer.token_text(token_id), position)

    def add_output(self, positions: Sequence[PositionLogprobs]) -> None:
        """Add sampled tokens."""
        for position in positions:
            self._add(position.chosen.text, position)

    def take(self) -> TextLogprobs | None:
        """Return the new rows, or None if there are none."""
        columns, self._columns = self._columns, self._empty()
        return columns if columns.tokens else None

    def _empty(self) -> TextLogprobs:
        return TextLogprobs([], [], [] if self._num_top else None, [])

    def _add(self, text: str, position: PositionLogprobs | None) -> None:
        columns = self._columns
        columns.tokens.append(text)
        columns.text_offset.append(self._offset)
        self._offset += len(text)
        columns.token_logprobs.append(position.chosen.logprob if position is not None else None)
        if columns.top_logprobs is not None:
            columns.top_logprobs.append(_alternatives(position) if position is not None else None)


def _alternatives(position: PositionLogprobs) -> dict[str, float]:
    """Best first; of two tokens with the same spelling the likelier counts. The chosen token is always there."""
    best: dict[str, float] = {}
    for token in (*position.top, position.chosen):
        best.setdefault(token.text, token.logprob)
    return best
