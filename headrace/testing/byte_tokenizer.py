"""A tokenizer without a vocabulary file: one token per UTF-8 byte, then two special tokens.

Owns nothing. Implements the interface of `text.Tokenizer`, so everything above can be tested without a model.
"""

from __future__ import annotations

from collections.abc import Iterable

_SPECIAL_NAMES = {256: b"<bos>", 257: b"<eos>"}


class ByteTokenizer:
    """Ids 0 … 255 are bytes, 256 begins a text, 257 ends it."""

    vocab_size = 258
    bos_id = 256
    eos_ids: tuple[int, ...] = (257,)
    special_ids = frozenset((256, 257))
    prefix_ids: tuple[int, ...] = (256,)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Return the bytes of `text`, after the begin token if `add_special`."""
        return [*((self.bos_id,) if add_special else ()), *text.encode()]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._bytes(i, skip_special) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return what one id adds to a text: nothing for special ids."""
        return self._bytes(token_id, True)

    def token_text(self, token_id: int) -> str:
        """Spell one token on its own, special ones by name."""
        return self._bytes(token_id, False).decode("utf-8", errors="replace")

    def _bytes(self, token_id: int, skip_special: bool) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside 0 … {self.vocab_size - 1}")
        if token_id in self.special_ids:
            return b"" if skip_special else _SPECIAL_NAMES[token_id]
        return bytes([token_id])
