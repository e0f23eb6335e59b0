"""A tokenizer out of GGUF metadata: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").

Invariant: a piece keeps its id; control and user-defined pieces are found in a text before anything is merged.
A kind of vocabulary or a way of cutting text that is not known is refused, never guessed.
Callers: `loading.py`. Source: the GGUF specification; the defaults of absent keys are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from headrace.core.collector import collector_paused
from headrace.core.errors import ModelFileBroken, UnsupportedModel
from headrace.text.gguf_vocabulary import PREFIX, GgufVocabulary, PieceType, name_texts, read_vocabulary
from headrace.text.merge_cache import cached_merges
from headrace.text.piece_bytes import SPACE_MARK, PieceSpelling
from headrace.text.pre_tokenizers import build_pre_tokenizer, pre_kind
from headrace.text.special_tokens import END_OF_TURN_TEXTS, SpecialTokens
from headrace.text.tokenizer import Tokenizer


def gguf_tokenizer(metadata: Mapping[str, object], cache_directory: Path | None) -> Tokenizer:
    """Build the tokenizer of a GGUF file.

    Raises ModelFileBroken for keys that are missing or contradict each other, UnsupportedModel for a kind of vocabulary
    that is not served.
    """
    # It would walk a million fresh strings and tuples again and again: a fifth of the time.
    with collector_paused():
        return _build(read_vocabulary(metadata), cache_directory)


def _build(vocabulary: GgufVocabulary, cache_directory: Path | None) -> Tokenizer:
    match vocabulary.model:
        case "gpt2":
            return _byte_level(vocabulary)
        case "llama":
            return _sentencepiece(vocabulary, cache_directory)
        case other:
            raise UnsupportedModel(
                f"tokenizer '{other}' ({PREFIX}model) is not served; "
                "served: gpt2 (byte-level BPE), llama (SentencePiece BPE)"
            )


def _byte_level(vocabulary: GgufVocabulary) -> Tokenizer:
    name = vocabulary.pre or "default"
    kind = pre_kind(name)
    merges = []
    for merge in vocabulary.merges:
        left, space, right = merge.partition(" ")
        if not space:
            raise ModelFileBroken(f"metadata '{PREFIX}merges' holds {merge!r}, which is not two pieces")
        merges.append((left, right))
    backend = _backend(vocabulary, merges, ignore_merges=kind.ignores_merges)
    if kind.is_nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = build_pre_tokenizer(kind)
    backend.decoder = decoders.ByteLevel()
    special = _special(vocabulary, adds_bos=kind.adds_bos)
    _add_tokens(backend, vocabulary, special)
    spelling = PieceSpelling(scheme="byte_level")
    return Tokenizer(backend, spelling=spelling, special=special, origin=f"byte-level BPE, cut as '{name}'")


def _sentencepiece(vocabulary: GgufVocabulary, cache_directory: Path | None) -> Tokenizer:
    if not vocabulary.scores:
        raise ModelFileBroken(f"metadata '{PREFIX}scores' is missing; SentencePiece cannot merge without")
    mergeable = vocabulary.of_type(PieceType.NORMAL, PieceType.UNUSED)
    merges = cached_merges(
        [vocabulary.pieces[i] for i in mergeable], [vocabulary.scores[i] for i in mergeable], cache_directory
    )
    has_bytes = PieceType.BYTE in vocabulary.types
    unknown = vocabulary.pieces[vocabulary.ids.get("unknown", 0)]
    backend = _backend(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    adds_space = vocabulary.adds_space_prefix is not False
    mark_spaces = normalizers.Replace(" ", SPACE_MARK)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE_MARK), mark_spaces]) if adds_space else mark_spaces
    )
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if adds_space else steps)
    special = _special(vocabulary, adds_bos=True)
    _add_tokens(backend, vocabulary, special)
    spelling = PieceSpelling(scheme="sentencepiece", has_byte_pieces=has_bytes, strips_first=adds_space)
    return Tokenizer(backend, spelling=spelling, special=special, origin="SentencePiece BPE")


def _backend(
    vocabulary: GgufVocabulary,
    merges: list[tuple[str, str]],
    *,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> tokenizers.Tokenizer:
    ids = {piece: i for i, piece in enumerate(vocabulary.pieces)}
    try:
        model = models.BPE(
            vocab=ids,
            merges=merges,
            unk_token=unk_token,
            fuse_unk=fuse_unk,
            byte_fallback=byte_fallback,
            ignore_merges=ignore_merges,
        )
    except Exception as error:  # the library raises nothing narrower
        raise ModelFileBroken(f"the tokenizer in the GGUF metadata contradicts itself: {error}") from error
    return tokenizers.Tokenizer(model)


def _add_tokens(backend: tokenizers.Tokenizer, vocabulary: GgufVocabulary, special: SpecialTokens) -> None:
    """Make control and user-defined pieces findable in raw text. They keep the ids they have in the vocabulary."""
    pieces = vocabulary.pieces
    plain = [i for i in vocabulary.of_type(PieceType.USER_DEFINED) if i not in special.ids]
    backend.add_tokens([AddedToken(pieces[i], normalized=False) for i in plain])
    backend.add_special_tokens([AddedToken(pieces[i], normalized=False, special=True) for i in sorted(special.ids)])


def _special(vocabulary: GgufVocabulary, *, adds_bos: bool) -> SpecialTokens:
    """Collect the special ids. `adds_bos` is the family's habit, where the file does not say."""
    ids, pieces = vocabulary.ids, vocabulary.pieces
    control = vocabulary.of_type(PieceType.CONTROL, PieceType.UNKNOWN)
    named = [ids[name] for name in ("eos", "eot", "eom") if name in ids]
    ends = dict.fromkeys([*named, *(i for i in control if pieces[i] in END_OF_TURN_TEXTS)])
    bos, eos = ids.get("bos"), ids.get("eos")
    starts = adds_bos if vocabulary.adds_bos is None else vocabulary.adds_bos
    return SpecialTokens(
        bos=bos,
        ends=tuple(ends),
        ids=frozenset([*control, *ends, *(() if bos is None else (bos,))]),
        prefix=() if bos is None or not starts else (bos,),
        suffix=() if eos is None or not vocabulary.adds_eos else (eos,),
        texts=name_texts(ids, pieces),
    )
