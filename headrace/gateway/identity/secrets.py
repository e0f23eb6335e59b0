"""Secrets of keys: made once, shown once, kept as keyed digests.

Owns nothing. A key reads `hr-PUBLIC-SECRET`: the public part finds the record, 256 random bits prove it. So much
chance needs no slow hash: one keyed BLAKE2b takes about a microsecond, and comparing is in constant time.
Source: RFC 7693 (BLAKE2, keyed mode and personalization).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

PREFIX = "hr-"
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 signs, none mistaken for another
_PUBLIC_SIGNS, _SECRET_SIGNS = 12, 52
_FORM = re.compile(rf"hr-([{_ALPHABET}]{{{_PUBLIC_SIGNS}}})-([{_ALPHABET}]{{{_SECRET_SIGNS}}})")


class Presented(NamedTuple):
    """A key as a caller sent it, in its two parts."""

    key_id: str
    secret: str


def new_key_id() -> str:
    """Draw the public part of a key."""
    return _draw(_PUBLIC_SIGNS)


def new_secret() -> str:
    """Draw the secret part of a key: 52 signs of 5 bits."""
    return _draw(_SECRET_SIGNS)


def spell(key_id: str, secret: str) -> str:
    """Return the whole key, as callers send it."""
    return f"{PREFIX}{key_id}-{secret}"


def parse(text: str) -> Presented | None:
    """Take a key apart; None if it is not one of ours."""
    found = _FORM.fullmatch(text)
    return Presented(found[1], found[2]) if found else None


class Pepper:
    """The database's own hashing key. Without it, digests cannot even be guessed at."""

    def __init__(self, text: str) -> None:
        key = hashlib.blake2b(text.encode(), person=b"headrace-pepper").digest()
        self._begun = hashlib.blake2b(key=key, digest_size=32, person=b"headrace-key")  # each digest begins as its copy

    @staticmethod
    def draw() -> str:
        """Return text for a new pepper."""
        return secrets.token_hex(32)

    def digest(self, presented: Presented) -> str:
        """Return the digest that is kept for a key. The public part is in it: digests cannot be swapped."""
        state = self._begun.copy()
        state.update(f"{presented.key_id}-{presented.secret}".encode())
        return state.hexdigest()

    def matches(self, presented: Presented, digest: str) -> bool:
        """Say, in constant time, whether a key is the one behind `digest`."""
        return hmac.compare_digest(self.digest(presented), digest)


def _draw(num_signs: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(num_signs))
