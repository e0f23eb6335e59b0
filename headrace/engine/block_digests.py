"""What stands for tokens in a decision log: keyed digests of full blocks.

Owns: the key, which is drawn for each log and never written, and the tokens of each live sequence since its last full
block. Used by the log's own thread. Equal blocks have equal digests within one log; without the key, a digest says
nothing about the tokens, and whoever has the log cannot try tokens out.
"""

from __future__ import annotations

import secrets
from array import array
from hashlib import blake2b

from headrace.core.request import SeqId
from headrace.kv import pack_tokens
from headrace.kv.radix import TOKEN_BYTES

DIGEST_BYTES = 8


class BlockDigests:
    """Digests the blocks of sequences as they fill."""

    def __init__(self, block_size: int) -> None:
        self._key = secrets.token_bytes(32)
        self._size = block_size
        self._tails: dict[SeqId, array[int]] = {}

    def prompt(self, seq_id: SeqId, prompt_key: bytes) -> list[str]:
        """Return the digests of a prompt's full blocks; the rest waits for more tokens."""
        block_bytes = self._size * TOKEN_BYTES
        num_full = len(prompt_key) // block_bytes
        tail = array("i")
        tail.frombytes(prompt_key[num_full * block_bytes :])
        self._tails[seq_id] = tail
        return [self.digest(prompt_key[i * block_bytes : (i + 1) * block_bytes]) for i in range(num_full)]

    def push(self, seq_id: SeqId, token_id: int) -> str | None:
        """Add a generated token; return the digest of the block that it has filled, if any."""
        tail = self._tails[seq_id]
        tail.append(token_id)
        if len(tail) < self._size:
            return None
        self._tails[seq_id] = array("i")
        return self.digest(pack_tokens(tail))

    def fork(self, child: SeqId, parent: SeqId) -> None:
        """Let a sequence have the tokens of another."""
        self._tails[child] = array("i", self._tails[parent])

    def forget(self, seq_id: SeqId) -> None:
        """Drop the tail of a sequence that has ended."""
        self._tails.pop(seq_id, None)

    def digest(self, content: bytes) -> str:
        """Return what stands for some bytes."""
        return blake2b(content, digest_size=DIGEST_BYTES, key=self._key).hexdigest()
