"""The tokenizer part of GGUF metadata as one checked value.

Owns the typed reading of `tokenizer.*`; what the pieces mean is `gguf_tokenizer.py`'s.
Invariant: in a `GgufVocabulary` every piece is distinct and not empty, lists have one entry a piece, ids are in range.
Each list is read from the metadata once, because reading decodes it. Source: the GGUF specification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from headrace.core.errors import ModelFileBroken

PREFIX = "tokenizer.ggml."
_TEMPLATE_NAMES = {"padding": "pad", "unknown": "unk", "seperator": "sep"}


class PieceType(IntEnum):
    """What GGUF says a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufVocabulary:
    """Pieces by id, and the keys about them.

    model    "gpt2" for byte-level BPE, "llama" for SentencePiece
    pre      how byte-level text is cut; None where the file does not say
    merges   "left right", best first; empty for SentencePiece
    scores   one a piece; empty for byte-level BPE
    ids      bos, eos, eot, eom, unknown, padding …: those the file names
    adds_*   None where the file does not say
    """

    model: str
    pre: str | None
    pieces: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    ids: dict[str, int]
    adds_bos: bool | None
    adds_eos: bool | None
    adds_space_prefix: bool | None

    def of_type(self, *types: PieceType) -> list[int]:
        """Return the ids of these types, ascending."""
        return [i for i, type_ in enumerate(self.types) if type_ in types]


def read_vocabulary(metadata: Mapping[str, object]) -> GgufVocabulary:
    """Read `tokenizer.ggml.*`. Raises ModelFileBroken naming the key that is missing or does not fit."""
    pieces = _distinct(_strings(metadata, "tokens"))
    if not pieces:
        raise ModelFileBroken(f"metadata '{PREFIX}tokens' is empty; the file holds no tokenizer")
    types = _one_each(metadata, "token_type", len(pieces))
    if set(map(type, types)) - {int}:
        raise ModelFileBroken(f"metadata '{PREFIX}token_type' holds something other than integers")
    scores = _one_each(metadata, "scores", len(pieces))
    if set(map(type, scores)) - {float}:
        raise ModelFileBroken(f"metadata '{PREFIX}scores' holds something other than floats")
    return GgufVocabulary(
        model=_string(metadata, "model") or "",
        pre=_string(metadata, "pre"),
        pieces=pieces,
        types=cast(list[int], types) or [int(PieceType.NORMAL)] * len(pieces),
        merges=_strings(metadata, "merges", required=False),
        scores=cast(list[float], scores),
        ids=_ids(metadata, len(pieces)),
        adds_bos=_flag(metadata, "add_bos_token"),
        adds_eos=_flag(metadata, "add_eos_token"),
        adds_space_prefix=_flag(metadata, "add_space_prefix"),
    )


def token_texts_by_name(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return what chat templates call the special tokens: bos_token → "<s>"."""
    pieces = _strings(metadata, "tokens")
    return name_texts(_ids(metadata, len(pieces)), pieces)


def name_texts(ids: Mapping[str, int], pieces: Sequence[str]) -> dict[str, str]:
    """Spell the named ids the way templates ask for them; GGUF has some names of its own."""
    return {f"{_TEMPLATE_NAMES.get(name, name)}_token": pieces[i] for name, i in ids.items()}


def _distinct(pieces: list[str]) -> list[str]:
    """Give empty pieces a name of their own; raise for two of the same spelling."""
    named = [piece or f"[EMPTY_{i}]" for i, piece in enumerate(pieces)]
    if len(set(named)) < len(named):
        seen: dict[str, int] = {}
        for i, piece in enumerate(named):
            if seen.setdefault(piece, i) != i:
                raise ModelFileBroken(f"metadata '{PREFIX}tokens' holds {piece!r} twice, as {seen[piece]} and {i}")
    return named


def _ids(metadata: Mapping[str, object], num_pieces: int) -> dict[str, int]:
    """Return the named ids: `tokenizer.ggml.bos_token_id` is "bos". Ids out of range name no piece and are left out."""
    names = (key.removeprefix(PREFIX) for key in metadata if key.startswith(PREFIX) and key.endswith("_token_id"))
    found = {name.removesuffix("_token_id"): metadata[PREFIX + name] for name in names}
    return {name: value for name, value in found.items() if isinstance(value, int) and 0 <= value < num_pieces}


def _string(metadata: Mapping[str, object], key: str) -> str | None:
    value = metadata.get(PREFIX + key)
    if value is not None and not isinstance(value, str):
        raise ModelFileBroken(f"metadata '{PREFIX}{key}' is {value!r}, not a string")
    return value


def _flag(metadata: Mapping[str, object], key: str) -> bool | None:
    value = metadata.get(PREFIX + key)
    if value is not None and not isinstance(value, bool):
        raise ModelFileBroken(f"metadata '{PREFIX}{key}' is {value!r}, not true or false")
    return value


def _strings(metadata: Mapping[str, object], key: str, *, required: bool = True) -> list[str]:
    values = metadata.get(PREFIX + key, None if required else [])
    if not isinstance(values, list) or set(map(type, values)) - {str}:
        raise ModelFileBroken(f"metadata '{PREFIX}{key}' is missing or is no list of strings; convert the model again")
    return cast(list[str], values)


def _one_each(metadata: Mapping[str, object], key: str, count: int) -> list[object]:
    """Return a list with one entry a piece, or an empty one where the file has none."""
    values = metadata.get(PREFIX + key, [])
    if not isinstance(values, list) or len(values) not in (0, count):
        length = len(values) if isinstance(values, list) else 1
        raise ModelFileBroken(f"metadata '{PREFIX}{key}' has {length:,} entries for {count:,} tokens")
    return values
