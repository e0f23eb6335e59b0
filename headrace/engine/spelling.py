"""How a token is shown on its own, beside its log probability.

Owns: a cache of spellings, bounded by the vocabulary. Used on the network thread only.
"""

from __future__ import annotations

from headrace.core.delta import TokenLogprob
from headrace.text import Tokenizer


class Spelling:
    """Spells tokens for one tokenizer, special tokens by name."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, bytes]] = {}

    def token(self, token_id: int, logprob: float) -> TokenLogprob:
        """Return the token with its text and bytes; bytes that are no whole character show as U+FFFD."""
        spelled = self._known.get(token_id)
        if spelled is None:
            spelled = self._known[token_id] = self._spell(token_id)
        return TokenLogprob(token_id=token_id, logprob=logprob, text=spelled[0], token_bytes=spelled[1])

    def _spell(self, token_id: int) -> tuple[str, bytes]:
        if token_id in self._tokenizer.special_ids:
            name = self._tokenizer.decode([token_id], skip_special=False)
            return name, name.encode()
        raw = self._tokenizer.token_bytes(token_id)
        return raw.decode("utf-8", "replace"), raw
