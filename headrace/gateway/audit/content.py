"""Content of calls on its way into the log and out again: redacted if so configured, then encrypted.

Owns the stored form, `KEY:BASE64`, of a nonce and AES-256-GCM's output. The only import of cryptography, made when
content is configured or read: extra `headrace[audit]`.
Invariant: content is never stored in the clear. Its digest is in the row's body, so it cannot be exchanged.
Source: NIST SP 800-38D; nonces of 96 random bits.
"""

from __future__ import annotations

import base64
import secrets
from typing import Literal

import msgspec

from headrace.core.audit import AuditContent
from headrace.core.errors import ConfigError
from headrace.gateway.audit.keys import AuditKey, KeyRing
from headrace.gateway.audit.redaction import redact, redact_body

_NONCE_BYTES = 12
_PURPOSE = b"headrace audit content"


class ContentSafe:
    """Closes and opens content. Raises ConfigError if it cannot."""

    def __init__(self, mode: Literal["none", "redacted", "full"], keys: KeyRing) -> None:
        self._mode = mode
        self._key = keys.current
        if mode == "none":
            return
        if self._key is None:
            raise ConfigError(
                "audit.content keeps what was said, encrypted, and there is no audit.key; make one: headrace audit key "
                "new FILE, and name it: audit.key = 'file:FILE'",
                param="audit.key",
            )
        _cipher(self._key)

    def close(self, content: AuditContent) -> str:
        """Return what is stored. Cost: about a millisecond for 64 KiB that are redacted; run it beside the loop."""
        assert self._key is not None
        if self._mode == "redacted":
            content = msgspec.structs.replace(
                content, request=redact_body(content.request, is_cut=content.is_cut), answer=redact(content.answer)
            )
        nonce = secrets.token_bytes(_NONCE_BYTES)
        closed = nonce + _cipher(self._key).encrypt(nonce, msgspec.json.encode(content), _PURPOSE)
        return f"{self._key.name}:{base64.b64encode(closed).decode()}"


def open_content(stored: str, keys: KeyRing) -> AuditContent:
    """Return what was stored. Raises ConfigError for a key that is not here and for damaged content."""
    name, _, encoded = stored.partition(":")
    key = keys.find(name)
    if key is None:
        raise ConfigError(f"the content is sealed with key {name[:8]}, which is not here; name it in audit.old_keys")
    from cryptography.exceptions import InvalidTag

    try:
        closed = base64.b64decode(encoded, validate=True)
        plain = _cipher(key).decrypt(closed[:_NONCE_BYTES], closed[_NONCE_BYTES:], _PURPOSE)
        return msgspec.json.decode(plain, type=AuditContent)
    except (InvalidTag, ValueError, msgspec.MsgspecError) as err:
        raise ConfigError("the content is damaged; headrace audit verify says which row was changed") from err


class _Cipher:
    """AES-256-GCM under one key."""

    def __init__(self, key: AuditKey) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as err:
            raise ConfigError(
                "content is encrypted with cryptography; install the extra: pip install 'headrace[audit]'"
            ) from err
        self._cipher = AESGCM(key.sealing)

    def encrypt(self, nonce: bytes, plain: bytes, purpose: bytes) -> bytes:
        return self._cipher.encrypt(nonce, plain, purpose)

    def decrypt(self, nonce: bytes, closed: bytes, purpose: bytes) -> bytes:
        return self._cipher.decrypt(nonce, closed, purpose)


def _cipher(key: AuditKey) -> _Cipher:
    return _Cipher(key)
