"""Drawing tokens on the device, by the rules of `sampling.sampler`, with its counter-based random numbers.

Owns nothing: segments that have been read are counted in `counters`. Called by `executor.cuda`; the kernels are in
`sampling_scan` and `sampling_draw`.
A kept set of tokens is always a prefix of the ranking (value falling, id rising), and so is written as (key, ties): all
values above `key`, and of those equal to it the first `ties` by id. No row is sorted.

    segment    a row's logits are read in pieces whose length depends on the vocabulary alone, a program each: any
               number of rows fills the device, and the batch never changes a sample
    scan       one pass: greedy tokens, log probabilities, and how far from the largest logit everything is that
               the filters and the draw can ask for
    gather     a second pass, only where rows are sampled: these few candidates, in the order of their ids
    draw       top-k, top-p, min-p and the draw, each a search for a key among the candidates

Scratch: fp64 numbers of each segment and row (columns: see `sampling_scan`), BINS counts of each segment, ids, values
and weights of the candidates.
Letters: R rows, V vocabulary, S segments of a row.
Source: Philox4x32-10, Salmon et al. 2011.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.counters import counters_of
from headrace.ops.cuda.launching import attempt, early, start
from headrace.ops.cuda.sampling_draw import TILE, draw, gather
from headrace.ops.cuda.sampling_scan import BINS, DRAW, LOOK, LOOK_AND_DRAW, MOST_TOP, NUM_PLANS, NUM_STATS, scan
from headrace.ops.cuda.sizes import cdiv, power_of_2

SAMPLED, NOT_FINITE, NOTHING_LEFT = 0, 1, 2

# Columns of `Lines.floats` (fp64) and `Lines.ints` (int32), written by the executor.
TEMPERATURE, TOP_P, MIN_P, REPETITION, FREQUENCY, PRESENCE, NUM_FLOATS = range(7)
SEED_LOW, SEED_HIGH, COUNTER, TOP_K, TARGET, NUM_INTS = range(6)
# Columns of the result, fp64: exact for every id and every fp32 number. Then num_top ids and num_top log probabilities.
OUT_TOKEN, OUT_STATUS, OUT_PEAK, OUT_LOGPROB, OUT_TOP = range(5)

_LEAST_SEGMENT, _MOST_SEGMENT = 256, 4096  # logits
_DRAW_WARPS = 8
_MOST_ROWS = (1 << 16) - 1  # as many as a grid has


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """How each of R lines of logits is drawn from.

    floats [R, NUM_FLOATS] fp64; ints [R, NUM_INTS] int32. A TARGET of 0 or more is scored, nothing is drawn.
    """

    floats: torch.Tensor
    ints: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustments:
    """Penalties, biases and bans, one entry per (line, token), and how often the token was put out.

    lines, ids, seen, counts  [E] int32: seen 1 if the token is in prompt or output, counts its times in the output
    biases                    [E] fp32: -inf bans the token
    """

    lines: torch.Tensor
    ids: torch.Tensor
    seen: torch.Tensor
    counts: torch.Tensor
    biases: torch.Tensor


@triton.jit(
    do_not_specialize=["num_entries"], do_not_specialize_on_alignment=["line_of", "ids", "seen", "counts", "biases"]
)
def _adjust(
    logits, line_of, ids, seen, counts, biases, floats, num_entries, vocab,
    NUM: tl.constexpr, REP: tl.constexpr, FREQ: tl.constexpr, PRES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < num_entries
    line = tl.load(line_of + entry, mask=inside, other=0).to(tl.int64)
    spot = logits + line * vocab + tl.load(ids + entry, mask=inside, other=0)
    z = tl.load(spot, mask=inside, other=0.0)
    r = tl.load(floats + line * NUM + REP, mask=inside, other=1.0).to(tl.float32)
    is_seen = tl.load(seen + entry, mask=inside, other=0) > 0
    z = tl.where(is_seen, tl.where(z > 0, tl.div_rn(z, r), z * r), z)  # `/` is not rounded to nearest
    count = tl.load(counts + entry, mask=inside, other=0)
    z -= tl.load(floats + line * NUM + FREQ, mask=inside, other=0.0).to(tl.float32) * count.to(tl.float32)
    presence = tl.load(floats + line * NUM + PRES, mask=inside, other=0.0).to(tl.float32)
    z -= tl.where(count > 0, presence, 0.0)
    z += tl.load(biases + entry, mask=inside, other=0.0)
    tl.store(spot, z, mask=inside)


@triton.jit(do_not_specialize=["out_width"])
def _pick_logprob(logits, out, ints, vocab, out_width, INTS: tl.constexpr):
    """Turn the log normalizer into the log probability of the token drawn, or of the one that is scored."""
    row = tl.program_id(0).to(tl.int64)
    result = out + row * out_width
    if tl.load(result + 1) == 0.0:
        target = tl.load(ints + row * INTS + 4)
        token = tl.where(target >= 0, target, tl.load(result).to(tl.int32))
        z = tl.load(logits + row * vocab + token)
        tl.store(result + 3, z.to(tl.float64) - tl.load(result + 3))
        tl.store(result, token.to(tl.float64))


def try_draw(
    logits: torch.Tensor,
    lines: Lines,
    adjustments: Adjustments | None,
    *,
    num_top: int | None,
    is_greedy: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Draw or score every line; return [R, 4 + 2·num_top] fp64 (see the columns above), None if kernels do not compile.

    logits     [R, V] fp32; adjusted in place while drawing, and as they were when this returns
    num_top    best alternatives of each line, at most MOST_TOP; None: no log probabilities at all
    is_greedy  no line has a temperature: one launch does it
    out        where the result goes; None: new memory
    Cost: one pass over the logits; two if lines are sampled; one more with adjustments.
    """
    if num_top is not None and num_top > MOST_TOP:
        raise ValueError(f"{num_top} alternatives; at most {MOST_TOP} are listed")
    if len(logits) > _MOST_ROWS:
        raise ValueError(f"{len(logits):,} lines of logits; at most {_MOST_ROWS:,} are drawn from at a time")
    found: list[torch.Tensor] = []
    attempt("sampling", logits, lambda: found.append(_draw_all(logits, lines, adjustments, num_top, is_greedy, out)))
    return found[0] if found else None


def segment_length(vocab: int) -> int:
    """Return the logits that one program reads: a 32nd of a row, as long as a program has enough to do."""
    return min(max(power_of_2(vocab) // 32, _LEAST_SEGMENT), _MOST_SEGMENT)


def _draw_all(
    logits: torch.Tensor,
    lines: Lines,
    adjustments: Adjustments | None,
    num_top: int | None,
    is_greedy: bool,
    out: torch.Tensor | None,
) -> torch.Tensor:
    rows, vocab = logits.shape
    width = 4 + 2 * (num_top or 0)
    device = logits.device
    segment = segment_length(vocab)
    num_segments = cdiv(vocab, segment)
    padded = power_of_2(num_segments)
    out = torch.empty((rows, width), dtype=torch.float64, device=device) if out is None else out
    stats = torch.empty((rows, padded, NUM_STATS), dtype=torch.float64, device=device)
    plans = torch.empty((rows, NUM_PLANS), dtype=torch.float64, device=device)
    bins = torch.empty((rows, padded, BINS), dtype=torch.int32, device=device)
    best = best_ids = bins
    if num_top is not None:
        best, best_ids = torch.empty((2, rows, padded, MOST_TOP), dtype=torch.int32, device=device).unbind()
    counters = counters_of(device)
    shape = {"FLOATS": NUM_FLOATS, "SEGMENT": segment, "SEGMENTS": padded, "num_warps": max(segment // 512, 1)}

    def scan_for(stage: int, *, lists: bool) -> None:
        start(
            scan, (num_segments, rows),
            logits, lines.floats, lines.ints, stats, bins, plans, best, best_ids, counters, out, vocab, width,
            num_top or 0, stage, INTS=NUM_INTS, LISTS=lists, **shape, **early(),
        )  # fmt: skip

    def choose() -> None:
        room = num_segments * segment
        tiles = torch.empty((rows, room // TILE), dtype=torch.int32, device=device)
        ids, keys = torch.empty((2, rows, room), dtype=torch.int32, device=device).unbind()
        weights = torch.empty((rows, room), dtype=torch.float64, device=device)
        start(
            gather,
            (num_segments, rows),
            logits,
            lines.floats,
            stats,
            plans,
            ids,
            keys,
            weights,
            vocab,
            room,
            **shape,
            **early(),
        )
        start(
            draw, (rows,),
            lines.floats, lines.ints, stats, plans, tiles, ids, keys, weights, out, vocab, room, width,
            **{**shape, "num_warps": _DRAW_WARPS}, INTS=NUM_INTS, **early(),
        )  # fmt: skip

    if adjustments is None:
        scan_for(LOOK_AND_DRAW, lists=num_top is not None)
        if not is_greedy:
            choose()
    else:
        scan_for(LOOK, lists=num_top is not None)
        with _adjusted(logits, lines, adjustments):
            scan_for(DRAW, lists=False)
            if not is_greedy:
                choose()
    if num_top is not None:
        start(_pick_logprob, (rows,), logits, out, lines.ints, vocab, width, INTS=NUM_INTS, num_warps=1)
    return out


@contextmanager
def _adjusted(logits: torch.Tensor, lines: Lines, adjustments: Adjustments) -> Iterator[None]:
    """Adjust logits until the end: log probabilities, and numpy for some lines, want them as the model had them."""
    places = (adjustments.lines.long(), adjustments.ids.long())
    before = logits[places]
    entries = len(adjustments.ids)
    try:
        start(
            _adjust, (cdiv(entries, 128),),
            logits, adjustments.lines, adjustments.ids, adjustments.seen, adjustments.counts, adjustments.biases,
            lines.floats, entries, logits.shape[1],
            NUM=NUM_FLOATS, REP=REPETITION, FREQ=FREQUENCY, PRES=PRESENCE, BLOCK=128,
            enable_fp_fusion=False,  # numpy rounds a penalty's product before it takes it off
        )  # fmt: skip
        yield
    finally:
        logits.index_put_(places, before)
