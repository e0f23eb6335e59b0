"""Merges of a SentencePiece BPE vocabulary, recovered from its scores.

SentencePiece keeps no merge list: at each step it joins the neighbours whose joint piece scores best, leftmost first.
Invariant: a piece has at most one merge, the last step of building it from its own characters.
One is enough. When a longer text joins a and b into p, no merge ever crossed p's borders, so inside them the steps were
those of p's text alone, and those are deterministic. The usual list of every split of p into two pieces is twice as
long, and ties between its entries are broken by their order instead of by position.
Callers: `merge_cache.py`. Pure; about 2 s for 262,144 pieces, hence the cache.
Source: SentencePiece's bpe_model; the boundary test follows the idea of splitting the younger neighbour first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Pair = tuple[str, str]


def merges_from_scores(pieces: Sequence[str], scores: Sequence[float]) -> list[Pair]:
    """Return the merge of each piece that can be built from characters, best score first.

    Pieces are distinct texts. Among equal scores the earlier piece comes first.
    """
    long = sorted((i for i, piece in enumerate(pieces) if len(piece) > 1), key=lambda i: -scores[i])
    rank = {pieces[i]: r for r, i in enumerate(long)}
    built: dict[str, Pair] = {piece: (piece, piece) for piece in pieces if len(piece) == 1}
    merges = []
    for piece, r in rank.items():
        cuts = ((piece[:k], piece[k:]) for k in range(1, len(piece)))
        merge = next(
            (cut for cut in cuts if cut[0] in built and cut[1] in built and _stay_apart(*cut, r, rank, built)), None
        )
        if merge is not None:
            built[piece] = merge
            merges.append(merge)
        elif all(char in built for char in piece):
            # It cannot be built, or a part of it ranks after the whole, which `built` has no place for.
            merge = _last_step(piece, rank)
            if merge is not None:
                merges.append(merge)
    return merges


def _stay_apart(left: str, right: str, before: int, rank: Mapping[str, int], built: Mapping[str, Pair]) -> bool:
    """Say whether `left` and `right` both get built before a merge of rank < `before` crosses their border.

    Takes back the younger of the two neighbours' last steps until both are characters, and looks at each state whether
    the joint of the neighbours would have come first.
    """
    left_rank, right_rank = rank.get(left, -1), rank.get(right, -1)
    while True:
        if left_rank > right_rank:
            before, left = left_rank, built[left][1]
            left_rank = rank.get(left, -1)
        elif right_rank >= 0:
            before, right = right_rank + 1, built[right][0]  # of equals the left one comes first
            right_rank = rank.get(right, -1)
        else:
            return True
        joint = rank.get(left + right)
        if joint is not None and joint < before:
            return False


def _last_step(piece: str, rank: Mapping[str, int]) -> Pair | None:
    """Build `piece` from its characters as SentencePiece does; return the last two parts, None if more remain."""
    parts = list(piece)
    while len(parts) > 2:
        candidates = [
            (found, i) for i in range(len(parts) - 1) if (found := rank.get(parts[i] + parts[i + 1])) is not None
        ]
        if not candidates:
            return None
        _, at = min(candidates)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None
