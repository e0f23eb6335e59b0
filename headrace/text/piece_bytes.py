"""From the spelling of a vocabulary piece to the bytes it adds to a text.

Vocabularies spell bytes in two ways. Byte-level BPE writes each byte as one printable character ("Ġ" is a space).
SentencePiece writes a space as "▁", and a byte that no piece covers as "<0xE2>".
Invariant: the bytes of a token do not depend on its neighbours, so a text is the concatenation of its tokens' bytes.
Pure; callers: `tokenizer.py`. Source: GPT-2's byte table (Radford et al. 2019), SentencePiece's byte fallback.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE_MARK = "▁"


def _byte_level_alphabet() -> dict[str, int]:
    """Return character → byte. Printable Latin-1 stands for itself, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in alphabet.values()]
    return alphabet | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceSpelling:
    """How a vocabulary spells bytes.

    has_byte_pieces  "<0xE2>" is one byte; SentencePiece only
    strips_first     a text's very first space was put there by the encoder and is taken away again; SentencePiece only
    """

    scheme: Literal["byte_level", "sentencepiece"]
    has_byte_pieces: bool = False
    strips_first: bool = False

    def piece_bytes(self, piece: str, *, is_added: bool) -> bytes:
        """Return the bytes of `piece`. Tokens added to the vocabulary by hand are spelled plainly in byte-level BPE."""
        if self.scheme == "byte_level":
            if not is_added:
                try:
                    return bytes([_ALPHABET[char] for char in piece])
                except KeyError:
                    pass  # not the alphabet: a piece that was put in as it is
            return piece.encode()
        if self.has_byte_pieces and (byte := _BYTE_PIECE.fullmatch(piece)) is not None:
            return bytes([int(byte[1], 16)])
        return piece.replace(SPACE_MARK, " ").encode()
