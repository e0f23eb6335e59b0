"""Keys of the audit log: what rows are sealed with, so that a writer to the database alone cannot forge them.

Owns the text of a key, `hra-` and 256 random bits, and the two keys that are derived from it: one for digests, one for
content. A key is named by eight signs of a digest of its own, which stand in every row that it has sealed.
Invariant: a key is never shown but by `draw`; errors name the place it is kept in.
Source: RFC 2104 (HMAC), used as a derivation with one label per purpose.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence

from headrace.core.errors import ConfigError

PREFIX = "hra-"
_BYTES = 32


def draw() -> str:
    """Return a new key, as it is kept in a file or the environment."""
    return PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(_BYTES)).rstrip(b"=").decode()


class AuditKey:
    """One key."""

    def __init__(self, secret: bytes) -> None:
        self.name = _derive(secret, b"name").hex()[:8]
        self.sealing = _derive(secret, b"content")  # for AES-256-GCM
        self._digests = _derive(secret, b"digests")

    @classmethod
    def parse(cls, text: str, place: str) -> AuditKey:
        """Read a key. Raises ConfigError naming `place`."""
        encoded = text.removeprefix(PREFIX)
        try:
            secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if not text.startswith(PREFIX) or len(secret) != _BYTES:
            raise ConfigError(f"{place} holds no key of an audit log; make one: headrace audit key new", param=place)
        return cls(secret)

    def digest(self, data: bytes) -> str:
        """Return the keyed digest of `data`."""
        return hmac.new(self._digests, data, hashlib.sha256).hexdigest()


class KeyRing:
    """The key that is written with, if any, and those that were. Raises ConfigError for what cannot be read."""

    def __init__(self, current: AuditKey | None = None, earlier: Sequence[AuditKey] = ()) -> None:
        self.current = current
        self._by_name = {key.name: key for key in (*earlier, *([current] if current else []))}

    @classmethod
    def read(cls, place: str | None, earlier: Sequence[str], read_secret: Callable[[str], str]) -> KeyRing:
        """Read keys from `env:NAME` and `file:PATH`."""
        keys = [_read(each, read_secret) for each in earlier]
        return cls(None if place is None else _read(place, read_secret), keys)

    def __contains__(self, name: str) -> bool:
        """Say whether digests of this key can be made; the empty name is that of no key."""
        return name == "" or name in self._by_name

    def find(self, name: str) -> AuditKey | None:
        """Return the key of that name."""
        return self._by_name.get(name)

    @property
    def writing_name(self) -> str:
        """Return the name of the key that is written with, empty for none."""
        return "" if self.current is None else self.current.name

    def digest(self, name: str, data: bytes) -> str:
        """Return the digest under the key of that name, a plain one under none. Raises KeyError."""
        return hashlib.sha256(data).hexdigest() if name == "" else self._by_name[name].digest(data)


def _read(place: str, read_secret: Callable[[str], str]) -> AuditKey:
    if not place.startswith(("env:", "file:")):
        raise ConfigError("audit.key (hidden) does not say where the key is kept; write 'env:NAME' or 'file:PATH'")
    return AuditKey.parse(read_secret(place), place)


def _derive(secret: bytes, purpose: bytes) -> bytes:
    return hmac.new(secret, b"headrace audit " + purpose, hashlib.sha256).digest()
