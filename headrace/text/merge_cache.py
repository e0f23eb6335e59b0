"""Keeps the merges of a SentencePiece vocabulary on disk, because finding them takes seconds for a large one.

Owns `tokenizers/merges-<key>.bin` in the cache. The key is a digest of the vocabulary, the file begins with a digest of
its body: a file that does not belong, or was cut short, is not used and is written anew.
Invariant: a directory that cannot be read or written costs time and nothing else.
Callers: `gguf_tokenizer.py`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from headrace.text.sentencepiece_merges import Pair, merges_from_scores

_VERSION = b"1"
_DIGEST_BYTES = 16


def cached_merges(pieces: Sequence[str], scores: Sequence[float], directory: Path | None) -> list[Pair]:
    """Return `merges_from_scores`, from `directory` if it has them. `pieces` are distinct."""
    if directory is None:
        return merges_from_scores(pieces, scores)
    path = directory / "tokenizers" / f"merges-{_key(pieces, scores)}.bin"
    found = _load(path, pieces)
    if found is None:
        found = merges_from_scores(pieces, scores)
        _store(path, pieces, found)
    return found


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=_DIGEST_BYTES).digest()


def _key(pieces: Sequence[str], scores: Sequence[float]) -> str:
    return _digest(_VERSION, "\n".join(pieces).encode(), b"\n", array("d", scores).tobytes()).hex()


def _load(path: Path, pieces: Sequence[str]) -> list[Pair] | None:
    """Return the merges in `path`; None if it is not there or not whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body = data[_DIGEST_BYTES:]
    if data[:_DIGEST_BYTES] != _digest(body):
        return None
    numbers = array("i")
    numbers.frombytes(body)
    texts = [pieces[i] for i in numbers]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _store(path: Path, pieces: Sequence[str], merges: Sequence[Pair]) -> None:
    """Write `merges` beside `path` and rename, so that no reader sees half a file."""
    numbers = {piece: i for i, piece in enumerate(pieces)}
    body = array("i", [numbers[piece] for piece in chain.from_iterable(merges)]).tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
        with os.fdopen(handle, "wb") as file:
            file.write(_digest(body) + body)
        Path(name).replace(path)
    except OSError:
        return  # read-only or full: the next start computes them again
