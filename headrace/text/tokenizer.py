"""`Tokenizer`: text to token ids and back.

Owns the vocabulary of one model. Immutable once made, and safe from any thread: encoding runs outside the interpreter
lock, and the table of token bytes fills itself with values that depend on the id alone.
Invariant: `decode(ids)` is the concatenation of `token_bytes`, read as UTF-8 with U+FFFD for what is none.
Special tokens written out in a text ("<|im_end|>") are read as the tokens they name, in prompts and in chat alike: the
way of the servers whose API this one shares. What users type is not trusted to be free of them.
Callers: everyone above; made by `loading.load_tokenizer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers

from headrace.core.errors import InvalidRequest
from headrace.text.piece_bytes import PieceSpelling
from headrace.text.special_tokens import SpecialTokens

_LONG_CHARS = 2048  # from here on, encoding lets other threads of the interpreter go on


class Tokenizer:
    """One model's vocabulary. `origin` says in words where it came from."""

    def __init__(
        self, backend: tokenizers.Tokenizer, *, spelling: PieceSpelling, special: SpecialTokens, origin: str
    ) -> None:
        self._backend = backend
        self._spelling = spelling
        self._special = special
        self._origin = origin
        added = backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._vocab_size = max(backend.get_vocab_size(with_added_tokens=True), 1 + max(added, default=-1))
        self._bytes: dict[int, bytes] = {}

    @property
    def vocab_size(self) -> int:
        """Number of ids; a model's output layer may have more."""
        return self._vocab_size

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text; None where the model has none."""
        return self._special.bos

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, the configured one first."""
        return self._special.ends

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no text."""
        return self._special.ids

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """What chat templates call them: bos_token, eos_token, …"""
        return self._special.texts

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What `encode(add_special=True)` puts before a text."""
        return self._special.prefix

    @property
    def strips_first_space(self) -> bool:
        """Say whether a text's first space is the encoder's; see `TextStream(strip_first_space=…)`."""
        return self._spelling.strips_first

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Return the ids of `text`; with `add_special` between the tokens that begin and end a text.

        Raises InvalidRequest for text that has no UTF-8 form.
        """
        try:
            if len(text) < _LONG_CHARS:
                ids = self._backend.encode(text, add_special_tokens=False).ids
            else:  # `encode` keeps the interpreter's lock: 0.6 s for a million characters, in whatever thread
                ids = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError:
            _refuse_surrogates(text)
            raise
        return self._wrap(ids, add_special)

    def encode_batch(self, texts: Sequence[str], *, add_special: bool) -> list[list[int]]:
        """Return the ids of each text, computed on several threads."""
        try:
            found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            for text in texts:
                _refuse_surrogates(text)
            raise
        return [self._wrap(encoding.ids, add_special) for encoding in found]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`, taken as a whole text. Ids outside the vocabulary add nothing."""
        spelled = self._spell if not skip_special else self.token_bytes
        text = b"".join(map(spelled, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._spelling.strips_first else text

    def token_bytes(self, token_id: int) -> bytes:
        """Return what one id adds to a text: nothing for special ids and for ids outside the vocabulary."""
        return b"" if token_id in self._special.ids else self._spell(token_id)

    def token_text(self, token_id: int) -> str:
        """Spell one token on its own, special ones by name; bytes that are no whole character become U+FFFD."""
        return self._spell(token_id).decode("utf-8", "replace")

    def token_id(self, text: str) -> int | None:
        """Return the id of a token by its spelling in the vocabulary, such as a special token's name."""
        found: int | None = self._backend.token_to_id(text)
        return found

    def save(self, path: Path) -> None:
        """Write the vocabulary as a `tokenizer.json`."""
        self._backend.save(str(path), pretty=False)

    def describe(self) -> str:
        """Say in one line what this vocabulary is."""
        ends = ", ".join(self.token_text(i) for i in self.eos_ids) or "none"
        begin = "none" if self.bos_id is None else self.token_text(self.bos_id)
        adds = "added" if self.bos_id in self.prefix_ids else "not added"
        return f"{self._origin}; {self.vocab_size:,} tokens; begins with {begin} ({adds}); ends with {ends}"

    def _spell(self, token_id: int) -> bytes:
        found = self._bytes.get(token_id)
        if found is None:
            piece = self._backend.id_to_token(token_id) if 0 <= token_id < self._vocab_size else None
            found = b"" if piece is None else self._spelling.piece_bytes(piece, is_added=token_id in self._added_ids)
            if piece is not None:
                self._bytes[token_id] = found
        return found

    def _wrap(self, ids: list[int], add_special: bool) -> list[int]:
        return [*self._special.prefix, *ids, *self._special.suffix] if add_special else ids


def _refuse_surrogates(text: str) -> None:
    """Raise InvalidRequest if half a UTF-16 pair stands in `text`: JSON can write one, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"character {error.start} of the text, U+{ord(text[error.start]):04X}, is half a UTF-16 pair; "
            "send the whole pair or leave it out"
        ) from error
