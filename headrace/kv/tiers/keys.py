"""Names of KV blocks outside this process: keyed hashes of everything that their numbers depend on.

    root   = H(secret, format, namespace)           format: model, weights, numbers, block size, program version
    block  = H(secret, key of the block before, its tokens)

Who can read a shared disk or server, but has not the secret, learns from keys neither prompts nor which tenants share
one; namespaces come from the server's own tenants. 160 bits of BLAKE2b: two prompts
are not taken for each other. Pure; about a microsecond per block.
"""

from __future__ import annotations

import hashlib

from headrace.kv.radix import Node
from headrace.kv.transfer.frames import KEY_BYTES

_SECRET_BYTES = 32
_ROOT, _BLOCK, _FORMAT = b"headrace kv root", b"headrace kv blck", b"headrace kv form"


def derive_secret(passphrase: str) -> bytes:
    """Return the bytes that hashes are keyed with."""
    return hashlib.blake2b(passphrase.encode(), digest_size=_SECRET_BYTES).digest()


def derive_format(*parts: object) -> bytes:
    """Return the id of a format: equal only if every part is."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16, person=_FORMAT).digest()


class KeyChain:
    """Makes the keys of one model's blocks under one secret."""

    def __init__(self, secret: bytes, format_id: bytes) -> None:
        self._secret = secret
        self._format_id = format_id

    def root(self, namespace: str) -> bytes:
        """Return what the first block of a namespace is chained to."""
        return self._hash(_ROOT, self._format_id + namespace.encode())

    def next(self, key: bytes, tokens: bytes) -> bytes:
        """Return the key of a block, given the key before it and its packed tokens."""
        return self._hash(_BLOCK, key + tokens)

    def of(self, node: Node) -> bytes:
        """Return the key of a cached block's node and keep it there. Cost: the nodes above it that have none yet."""
        bare: list[Node] = []
        at: Node | None = node
        while at is not None and at.digest is None:
            bare.append(at)
            at = at.parent
        for each in reversed(bare):
            parent = each.parent
            if parent is None:
                each.digest = self.root(each.key.decode())
            else:
                assert parent.digest is not None
                each.digest = self.next(parent.digest, each.key)
        assert node.digest is not None
        return node.digest

    def _hash(self, person: bytes, data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=KEY_BYTES, key=self._secret, person=person).digest()
