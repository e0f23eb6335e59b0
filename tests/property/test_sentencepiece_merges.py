"""Merges recovered from scores, applied by rank, give what SentencePiece's own rule gives."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from headrace.text.sentencepiece_merges import merges_from_scores

LETTERS = "ab"


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[str, float]:
    """Pieces over two letters with distinct scores in any order, so wholes may rank before their parts."""
    longer = draw(st.lists(st.text(LETTERS, min_size=2, max_size=6), unique=True, max_size=14))
    ranks = draw(st.permutations(range(len(longer))))
    return {**dict.fromkeys(LETTERS, -100.0), **{piece: -float(r) for piece, r in zip(longer, ranks, strict=True)}}


def sentencepiece(text: str, scores: dict[str, float]) -> list[str]:
    """Join the neighbours whose joint piece scores best, leftmost first, until none is left."""
    parts = list(text)
    while True:
        joints = [(-scores[p + q], i) for i, (p, q) in enumerate(itertools.pairwise(parts)) if p + q in scores]
        if not joints:
            return parts
        at = min(joints)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@settings(max_examples=400, deadline=None)
@given(vocabularies(), st.text(LETTERS, min_size=1, max_size=30))
def test_merging_by_rank_is_merging_by_score(scores: dict[str, float], text: str) -> None:
    merges = merges_from_scores(list(scores), list(scores.values()))
    ids = {piece: i for i, piece in enumerate(scores)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    assert tokenizer.encode(text).tokens == sentencepiece(text, scores)


@given(vocabularies())
def test_no_piece_has_two_merges(scores: dict[str, float]) -> None:
    joints = [left + right for left, right in merges_from_scores(list(scores), list(scores.values()))]
    assert len(joints) == len(set(joints))
