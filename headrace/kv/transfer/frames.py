"""Frames: a KV block as it lies outside this process, and how one is known to be whole, ours and the right one.

    | magic 8 | version u32 | reserved u32 | block bytes u64 | key 20 | format 16 | seal 16 | zeros to 128 | block |

key     which tokens after which prefix in which namespace, hashed under the server's secret (`kv.tiers.keys`)
format  model, weights, numbers and block size; bytes of another format are never taken for ours
seal    keyed BLAKE2b over header and block: finds damage, and forgery by whoever can write to the place but has not
        the secret

Pure functions of their arguments. Called by I/O threads; hashing lets the interpreter lock go.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

HEADER_BYTES = 128
KEY_BYTES = 20
FORMAT_BYTES = 16
_MAGIC = b"HRKVBLK\n"
_VERSION = 1
_FIELDS = struct.Struct(f"<8sIIQ{KEY_BYTES}s{FORMAT_BYTES}s")
_SEAL_BYTES = 16
_PERSON = b"headrace kv seal"


class FrameCodec:
    """Seals and checks frames of one format under one secret."""

    def __init__(self, secret: bytes, format_id: bytes, block_bytes: int) -> None:
        self.frame_bytes = HEADER_BYTES + block_bytes
        self._secret = secret
        self._format_id = format_id
        self._block_bytes = block_bytes

    def seal(self, key: bytes, frame: memoryview) -> None:
        """Write the header of a frame whose block is in place. Cost: one pass over the block."""
        fields = self._fields(key)
        seal = self._seal(fields, frame)
        head = fields + seal
        frame[: len(head)] = head
        frame[len(head) : HEADER_BYTES] = bytes(HEADER_BYTES - len(head))

    def is_whole(self, key: bytes, frame: memoryview, num_bytes: int) -> bool:
        """Say whether the first `num_bytes` of `frame` are the sealed block of `key`, all of it."""
        fields = self._fields(key)
        if num_bytes != self.frame_bytes or bytes(frame[: len(fields)]) != fields:
            return False
        found = bytes(frame[len(fields) : len(fields) + _SEAL_BYTES])
        return hmac.compare_digest(found, self._seal(fields, frame))

    def _fields(self, key: bytes) -> bytes:
        return _FIELDS.pack(_MAGIC, _VERSION, 0, self._block_bytes, key, self._format_id)

    def _seal(self, fields: bytes, frame: memoryview) -> bytes:
        digest = hashlib.blake2b(fields, digest_size=_SEAL_BYTES, key=self._secret, person=_PERSON)
        digest.update(frame[HEADER_BYTES : self.frame_bytes])
        return digest.digest()
