"""`TextStream`: token ids in, text out, piece by piece, the same text whatever the pieces.

Owns one sequence's text buffer. Invariant: the pieces of `push` and the rest from `finish`, joined, are the whole text
decoded at once and cut at the first stop string. No piece ends inside a character; bytes that can never become a
character turn into U+FFFD exactly where a decoder of the whole would put it.
Cost: a token costs O(its bytes), with stop strings O(1) amortised a character more.
Callers: the engine, one stream for each sequence. Not thread safe: one owner.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from headrace.text.stop_matcher import StopMatcher

_NewDecoder = codecs.getincrementaldecoder("utf-8")


class TokenBytes(Protocol):
    """What a stream needs of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no ordinary text."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return what one id adds to a text: nothing for special ids."""
        ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`."""
        ...


class Piece(NamedTuple):
    """Text that is final, and the stop string that ended the sequence."""

    text: str
    stop_match: str | None


_NOTHING = Piece("", None)


class TextStream:
    """One sequence's text as its tokens arrive.

    skip_special       special tokens add no text
    stop_strings       the text ends where the first of them to be complete begins; empty ones are ignored
    include_stop_text  the text ends after the stop string instead
    strip_first_space  drop one leading space: the text begins here and the tokenizer writes a space before its first
                       word. Text that continues a prompt is not such a beginning.
    """

    def __init__(
        self,
        tokenizer: TokenBytes,
        *,
        skip_special: bool = True,
        stop_strings: Sequence[str] = (),
        include_stop_text: bool = False,
        strip_first_space: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._special_ids = tokenizer.special_ids
        self._skip_special = skip_special
        self._include_stop_text = include_stop_text
        self._strip = strip_first_space
        self._decoder = _NewDecoder("replace")
        self._matcher = StopMatcher(stop_strings) if any(stop_strings) else None
        self._stop_match: str | None = None

    @property
    def stop_match(self) -> str | None:
        """The stop string that ended the text; None while it goes on. After a match nothing more comes out."""
        return self._stop_match

    def push(self, token_id: int) -> Piece:
        """Take the next token; return the text it settled."""
        if self._stop_match is not None:
            return _NOTHING
        if token_id not in self._special_ids:
            data = self._tokenizer.token_bytes(token_id)
        elif self._skip_special:
            return _NOTHING
        else:
            data = self._tokenizer.decode((token_id,), skip_special=False).encode()
        return self._take(self._decoder.decode(data))

    def finish(self) -> str:
        """Return the rest: held-back text, and U+FFFD for a character that was never completed. Idempotent."""
        if self._stop_match is not None:
            return ""
        text = self._take(self._decoder.decode(b"", True)).text
        if self._matcher is not None and self._stop_match is None:
            text += self._matcher.flush()
        return text

    def _take(self, text: str) -> Piece:
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        if not text:
            return _NOTHING
        if self._matcher is None:
            return Piece(text, None)
        released, self._stop_match = self._matcher.feed(text)
        if self._stop_match is not None and self._include_stop_text:
            released += self._stop_match
        return Piece(released, self._stop_match)
