"""The kernel that reads logits: one segment of one row each; whoever ends last looks at the row as a whole.

Owns nothing. Launched by `sampling`, whose docstring has segments, scratch and letters.
A row's greedy token, its log probabilities and, where it is sampled, by what distance from the largest logit everything
that can matter is reached: all from one pass. Distances are in units of the temperature. A segment cannot know the
row's largest, so it counts its tokens by their distance from its own; added to the distance of that from the row's
this bounds each token's distance from both sides, and so the weight of all tokens beyond any distance.
Sums over segments are taken in their order: the order of arrival never shows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headrace.ops.cuda.launching import take_turn

BINS = 64
MOST_TOP = 64  # alternatives that can be listed: `sampling.MAX_ALTERNATIVES`

# Columns of a segment's scratch, fp64.
TOP, SPOT, SUM, NORM, HELD, OUTSIDE, INSIDE, LOWEST, NUM_STATS = range(9)
# Of a row's: where its candidates end (negative: it has none), and its largest logit after adjustments.
REACH, PEAK, NUM_PLANS = range(3)

LOOK_AND_DRAW, LOOK, DRAW = 0, 1, 2  # what a launch finds out: logits as they are, before, after adjustments

_BINS: tl.constexpr = tl.constexpr(BINS)
_MOST_TOP: tl.constexpr = tl.constexpr(MOST_TOP)
_TOP: tl.constexpr = tl.constexpr(TOP)
_SPOT: tl.constexpr = tl.constexpr(SPOT)
_SUM: tl.constexpr = tl.constexpr(SUM)
_NORM: tl.constexpr = tl.constexpr(NORM)
_NUM_STATS: tl.constexpr = tl.constexpr(NUM_STATS)
_NUM_PLANS: tl.constexpr = tl.constexpr(NUM_PLANS)
_LOOK: tl.constexpr = tl.constexpr(LOOK)
_DRAW: tl.constexpr = tl.constexpr(DRAW)
_FINE: tl.constexpr = tl.constexpr(0.3)  # bins 0 … 31 are this wide
_COARSE: tl.constexpr = tl.constexpr(1.1)  # and those behind them this
_BEND: tl.constexpr = tl.constexpr(32)
_FARTHEST: tl.constexpr = tl.constexpr(90.0)
_ROUNDS: tl.constexpr = tl.constexpr(10)
_NO_KEY: tl.constexpr = tl.constexpr(-0x80000000)  # below the key of -inf


@triton.jit
def keys_of(z):
    """Map fp32 to int32 in the same order; the two zeros are one."""
    bits = z.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@triton.jit
def value_of(key):
    """Return the fp32 of a key."""
    wide = key.to(tl.int64)
    bits = tl.where(wide < 0, (-wide) | 0x80000000, wide)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def rate_of(temperature):
    """Return what differences of logits are multiplied with to be distances, fp32."""
    return 1.0 / tl.maximum(temperature.to(tl.float32), 1e-37)


@triton.jit
def total_of(weights, SEGMENT: tl.constexpr):
    """Add up fp32 weights of a segment: neighbours in fp32, the rest in fp64."""
    return tl.sum(tl.sum(tl.reshape(weights, [SEGMENT // 4, 4]), axis=1).to(tl.float64), axis=0)


@triton.jit
def uniform_of(ints):
    """Return the number in [0, 1) of a row's seed and counter, as `sampling.random.uniform`."""
    k0 = tl.load(ints).to(tl.uint32, bitcast=True).to(tl.uint64)
    k1 = tl.load(ints + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    c0 = tl.load(ints + 2).to(tl.uint32, bitcast=True).to(tl.uint64)
    c1 = tl.zeros_like(c0)
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    low: tl.constexpr = 0xFFFFFFFF
    for _ in tl.static_range(10):
        p0 = c0 * 0xD2511F53
        p1 = c2 * 0xCD9E8D57
        c0 = (p1 >> 32) ^ c1 ^ k0
        c2 = (p0 >> 32) ^ c3 ^ k1
        c1 = p1 & low
        c3 = p0 & low
        k0 = (k0 + 0x9E3779B9) & low
        k1 = (k1 + 0xBB67AE85) & low
    return ((c0 << 32 | c1) >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _edge(b):
    """Return the distance at which a bin begins."""
    return tl.minimum(b, _BEND).to(tl.float32) * _FINE + tl.maximum(b - _BEND, 0).to(tl.float32) * _COARSE


@triton.jit
def _bin(distances):
    """Return the bins of distances."""
    places = tl.minimum(distances * (1.0 / _FINE), distances * (1.0 / _COARSE) + _BEND * (1.0 - _FINE / _COARSE))
    return tl.minimum(places, _BINS - 1.0).to(tl.int32)


@triton.jit
def _reach(bins, stats, tops, is_segment, peak, floats, ints, SEGMENTS: tl.constexpr):
    """Return a distance within which lies all that the filters and the draw can ask for; inf if none is known."""
    rate = rate_of(tl.load(floats))
    top_p = tl.load(floats + 1)
    min_p = tl.load(floats + 2)
    top_k = tl.load(ints + 3)
    s = tl.arange(0, SEGMENTS)
    b = tl.arange(0, _BINS)
    apart = (peak - tops) * rate
    nums = tl.load(
        bins + s[:, None] * _BINS + b[None, :], mask=is_segment[:, None], other=0, cache_modifier=".cg"
    ).to(tl.float32)  # fmt: skip
    least = apart[:, None] + _edge(b)[None, :]
    most = tl.where(b[None, :] == _BINS - 1, float("inf"), apart[:, None] + _edge(b + 1)[None, :])
    sums = tl.load(stats + s * _NUM_STATS + _SUM, mask=is_segment, other=0.0, cache_modifier=".cg")
    whole = tl.sum(sums * tl.exp(-apart).to(tl.float64), axis=0)
    share = tl.where(top_p < 1.0, top_p, uniform_of(ints))
    allowed = ((1.0 - share) * whole * 0.999).to(tl.float32)  # the rest is for what fp32 has rounded
    low = tl.zeros((), tl.float32)
    high = low + _FARTHEST
    for _ in range(_ROUNDS):
        middle = (low + high) * 0.5
        if top_k > 0:
            is_enough = tl.sum(tl.sum(tl.where(most <= middle, nums, 0.0), axis=1), axis=0) >= top_k
        else:
            beyond = tl.where(most > middle, nums * tl.exp(-tl.maximum(least, middle)), 0.0)
            is_enough = tl.sum(tl.sum(beyond, axis=1), axis=0) < allowed
        low = tl.where(is_enough, low, middle)
        high = tl.where(is_enough, middle, high)
    # A little farther, lest rounding leaves one out that has been counted in.
    reach = tl.where(high == _FARTHEST, float("inf"), high * 1.0001 + 1e-4)
    if (min_p > 0.0) & (top_p >= 1.0) & (top_k <= 0):
        reach = (1e-3 - tl.log(min_p) * 1.00001).to(tl.float32)
    return reach


@triton.jit
def _list_best(stats, best, best_ids, result, tops, is_segment, peak, num_top, vocab, SEGMENTS: tl.constexpr):
    """Write the log normalizer to the place of the log probability, and the best `num_top` ids with theirs."""
    s = tl.arange(0, SEGMENTS)
    norms = tl.load(stats + s * _NUM_STATS + _NORM, mask=is_segment, other=0.0, cache_modifier=".cg")
    wide = peak.to(tl.float64)
    shift = wide + tl.log(tl.sum(norms * tl.exp(tops.to(tl.float64) - wide), axis=0))
    tl.store(result + 3, shift)
    t = tl.arange(0, _MOST_TOP)
    spots = s[:, None] * _MOST_TOP + t[None, :]
    inside = is_segment[:, None] & (t < num_top)[None, :]
    keys = tl.load(best + spots, mask=inside, other=_NO_KEY, cache_modifier=".cg")
    ids = tl.load(best_ids + spots, mask=inside, other=vocab, cache_modifier=".cg")
    for rank in range(num_top):
        key = tl.max(tl.max(keys, axis=1), axis=0)
        token = tl.min(tl.min(tl.where(keys == key, ids, vocab), axis=1), axis=0)
        keys = tl.where(ids == token, _NO_KEY, keys)
        tl.store(result + 4 + rank, token.to(tl.float64))
        tl.store(result + 4 + num_top + rank, value_of(key).to(tl.float64) - shift)


@triton.jit
def _see_row(
    floats, ints, stats, bins, plans, best, best_ids, result, status, is_drawn, stage, num_top, vocab,
    SEGMENTS: tl.constexpr, LISTS: tl.constexpr,
):  # fmt: skip
    """Make of a row's segments its largest logit, its greedy token, its status, and how far candidates reach."""
    s = tl.arange(0, SEGMENTS)
    is_segment = s < tl.num_programs(0)
    # `.cg`: what other multiprocessors wrote lies in L2.
    tops = tl.load(stats + s * _NUM_STATS + _TOP, mask=is_segment, other=float("-inf"), cache_modifier=".cg")
    spots = tl.load(stats + s * _NUM_STATS + _SPOT, mask=is_segment, other=0.0, cache_modifier=".cg")
    has_nan = tl.max((tops != tops).to(tl.int32), axis=0) > 0
    tops = tl.where(tops < float("inf"), tops, float("inf")).to(tl.float32)
    peak = tl.max(tops, axis=0)
    token = tl.min(tl.where(tops == peak, spots, vocab), axis=0)
    if stage == _DRAW:
        if status == 0.0:
            status = tl.where(peak == float("-inf"), 2.0, 0.0).to(tl.float64)
    else:
        status = tl.where((peak == float("-inf")) | (peak == float("inf")), 1.0, 0.0).to(tl.float64)
        tl.store(result + 2, tl.where(has_nan, float("nan"), peak).to(tl.float64))
    tl.store(result, token)
    tl.store(result + 1, status)
    if LISTS:  # noqa: SIM102  (decided at compile time, the inner one as it runs)
        if status == 0.0:
            _list_best(stats, best, best_ids, result, tops, is_segment, peak, num_top, vocab, SEGMENTS)
    reach = tl.full((), -1.0, tl.float32)
    if is_drawn & (status == 0.0):
        reach = _reach(bins, stats, tops, is_segment, peak, floats, ints, SEGMENTS)
    tl.store(plans, reach.to(tl.float64))
    tl.store(plans + 1, peak.to(tl.float64))


@triton.jit(do_not_specialize=["out_width", "num_top", "stage"])
def scan(
    logits, floats, ints, stats, bins, plans, best, best_ids, counters, out, vocab, out_width, num_top, stage,
    FLOATS: tl.constexpr, INTS: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, LISTS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Read one segment of one row: its largest logit, and what the row's needs ask for."""
    take_turn(IS_EARLY)
    segment = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    # All that is read is asked for before anything is waited for.
    temperature = tl.load(floats + row * FLOATS)
    is_drawn = (temperature > 0.0) & (stage != _LOOK) & (tl.load(ints + row * INTS + 4) < 0)
    status = tl.load(out + row * out_width + 1, mask=stage == _DRAW, other=0.0)
    i = segment * SEGMENT + tl.arange(0, SEGMENT)
    z = tl.load(logits + row * vocab + i, mask=i < vocab, other=float("-inf"))
    # NaN and +inf count as +inf here: the largest tells whether there is one.
    top = tl.max(tl.where(z < float("inf"), z, float("inf")), axis=0)
    spot = tl.min(tl.where(z == top, i, vocab), axis=0)
    base = tl.where(top == float("-inf"), 0.0, top)
    own = stats + (row * SEGMENTS + segment) * _NUM_STATS
    if top == float("inf"):
        top = tl.where(tl.max((z != z).to(tl.int32), axis=0) > 0, float("nan"), top)
    tl.store(own + _TOP, top.to(tl.float64))
    tl.store(own + _SPOT, spot.to(tl.float64))
    if is_drawn & (top < float("inf")):
        distances = (base - z) * rate_of(temperature)
        tl.store(own + _SUM, total_of(tl.exp(-distances), SEGMENT))
        tl.store(bins + (row * SEGMENTS + segment) * _BINS + tl.arange(0, _BINS), tl.histogram(_bin(distances), _BINS))
    if LISTS:
        tl.store(own + _NORM, tl.sum(tl.exp(z.to(tl.float64) - base.to(tl.float64)), axis=0))
        listed = (row * SEGMENTS + segment) * _MOST_TOP
        keys = tl.where(i < vocab, keys_of(z), _NO_KEY)
        for rank in range(num_top):
            key = tl.max(keys, axis=0)
            token = tl.min(tl.where(keys == key, i, vocab), axis=0)
            keys = tl.where(i == token, _NO_KEY, keys)
            tl.store(best + listed + rank, key)
            tl.store(best_ids + listed + rank, tl.where(key == _NO_KEY, vocab, token))
    tl.debug_barrier()  # one thread counts for all of them, once all have written
    if tl.atomic_add(counters + row, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
        tl.debug_barrier()  # … and has seen what the others wrote before any thread reads it
        tl.store(counters + row, 0)
        _see_row(
            floats + row * FLOATS, ints + row * INTS, stats + row * SEGMENTS * _NUM_STATS,
            bins + row * SEGMENTS * _BINS, plans + row * _NUM_PLANS, best + row * SEGMENTS * _MOST_TOP,
            best_ids + row * SEGMENTS * _MOST_TOP, out + row * out_width, status, is_drawn, stage, num_top, vocab,
            SEGMENTS, LISTS,
        )  # fmt: skip
