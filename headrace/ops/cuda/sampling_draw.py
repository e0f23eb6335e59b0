"""The kernels that draw: candidates are gathered segment by segment, then one program a row searches among them.

Owns nothing. Launched by `sampling`, whose docstring has scratch and letters; `sampling_scan` found how far they reach.
A segment's candidates stand in its own part of the row's room in the order of their ids, filled up to whole tiles with
what no search finds; a table of the tiles in use makes of these parts one list.
A search for a key halves the interval that it must lie in, and draws its ends to the candidates that are there: about
as many rounds as the logarithm of their number.
Weights and sums are fp64; those of tokens that are not gathered are summed from fp32 exponentials.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headrace.ops.cuda.launching import take_turn
from headrace.ops.cuda.sampling_scan import (
    HELD,
    INSIDE,
    LOWEST,
    NUM_PLANS,
    NUM_STATS,
    OUTSIDE,
    PEAK,
    SUM,
    TOP,
    keys_of,
    rate_of,
    uniform_of,
    value_of,
)

TILE = 64  # candidates
TILES = 32  # looked at together

_TILE: tl.constexpr = tl.constexpr(TILE)
_TILES: tl.constexpr = tl.constexpr(TILES)
_HELD: tl.constexpr = tl.constexpr(HELD)
_OUTSIDE: tl.constexpr = tl.constexpr(OUTSIDE)
_INSIDE: tl.constexpr = tl.constexpr(INSIDE)
_LOWEST: tl.constexpr = tl.constexpr(LOWEST)
_SUM: tl.constexpr = tl.constexpr(SUM)
_TOP: tl.constexpr = tl.constexpr(TOP)
_PEAK: tl.constexpr = tl.constexpr(PEAK)
_NUM_STATS: tl.constexpr = tl.constexpr(NUM_STATS)
_NUM_PLANS: tl.constexpr = tl.constexpr(NUM_PLANS)
_LEAST_KEY: tl.constexpr = tl.constexpr(-0x7FFFFFFF)  # outside of what numbers have
_MOST_KEY: tl.constexpr = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _weigh(z, peak, temperature):
    return tl.exp((z.to(tl.float64) - peak.to(tl.float64)) / temperature)


@triton.jit
def gather(
    logits, floats, stats, plans, ids, keys, weights, vocab, room,
    FLOATS: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Write ids, keys and weights of a segment's candidates to its part of the room, and what the others weigh."""
    take_turn(IS_EARLY)
    segment = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    reach = tl.load(plans + row * _NUM_PLANS).to(tl.float32)
    if reach >= 0.0:
        peak = tl.load(plans + row * _NUM_PLANS + _PEAK).to(tl.float32)
        own = stats + (row * SEGMENTS + segment) * _NUM_STATS
        temperature = tl.load(floats + row * FLOATS)
        rate = rate_of(temperature)
        apart = (peak - tl.load(own + _TOP).to(tl.float32)) * rate
        num = tl.zeros((), tl.int32)
        inside = tl.zeros((), tl.float64)
        lowest = tl.full((), _MOST_KEY, tl.int32)
        outside = tl.load(own + _SUM) * tl.exp(-apart).to(tl.float64)
        if apart <= reach:
            line = logits + row * vocab
            part = row * room + segment * SEGMENT
            # Four neighbours at a time: what is counted over all of a program are their sums.
            four = tl.arange(0, 4)[None, :]
            i = segment * SEGMENT + tl.arange(0, SEGMENT // 4)[:, None] * 4 + four
            z = tl.load(line + i, mask=i < vocab, other=float("-inf"))
            distances = (peak - z) * rate
            is_held = distances <= tl.minimum(reach, 3e38)  # never -inf
            held = is_held.to(tl.int32)
            sums = tl.sum(held, axis=1)
            ends = tl.cumsum(sums, axis=0)
            place = (ends - sums)[:, None] + tl.cumsum(held, axis=1) - held
            tl.store(ids + part + place, i, mask=is_held)
            num = tl.max(ends, axis=0)
            outside = tl.sum(tl.sum(tl.where(is_held, 0.0, tl.exp(-distances)), axis=1).to(tl.float64), axis=0)
            tl.debug_barrier()
            each: tl.constexpr = SEGMENT // 16 if SEGMENT // 16 > _TILE else _TILE
            mass = tl.zeros((each,), tl.float64)
            least = tl.full((each,), _MOST_KEY, tl.int32)
            for at in range(0, num, each):
                j = at + tl.arange(0, each)
                tokens = tl.load(ids + part + j, mask=j < num, other=0)
                one = tl.load(line + tokens, mask=j < num, other=float("-inf"))
                w = _weigh(one, peak, temperature)
                key = keys_of(one)
                mass += w
                least = tl.minimum(least, tl.where(j < num, key, _MOST_KEY))
                tl.store(keys + part + j, tl.where(j < num, key, _LEAST_KEY), mask=j < tl.cdiv(num, _TILE) * _TILE)
                tl.store(weights + part + j, w, mask=j < tl.cdiv(num, _TILE) * _TILE)
            inside = tl.sum(mass, axis=0)
            lowest = tl.min(least, axis=0)
        tl.store(own + _HELD, num.to(tl.float64))
        tl.store(own + _OUTSIDE, outside)
        tl.store(own + _INSIDE, inside)
        tl.store(own + _LOWEST, lowest.to(tl.float64))


@triton.jit
def _list_tiles(tiles, held, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr):
    """Write where each tile in use begins, first to last; return how many there are."""
    own = tl.cdiv(held, _TILE)
    ends = tl.cumsum(own, axis=0)
    begins = ends - own
    num_tiles = tl.max(ends, axis=0)
    s = tl.arange(0, SEGMENTS)
    for at in range(0, num_tiles, _TILES):
        t = at + tl.arange(0, _TILES)
        is_of = (begins[None, :] <= t[:, None]) & (t[:, None] < ends[None, :])
        place = s[None, :] * SEGMENT + (t[:, None] - begins[None, :]) * _TILE
        tl.store(tiles + t, tl.sum(tl.where(is_of, place, 0), axis=1), mask=t < num_tiles)
    tl.debug_barrier()
    return num_tiles


@triton.jit
def _spots(tiles, at, num_tiles):
    """Return where the candidates of the tiles from `at` on are, [_TILES, _TILE], and which of them there are."""
    t = at + tl.arange(0, _TILES)
    begins = tl.multiple_of(tl.load(tiles + t, mask=t < num_tiles, other=0), _TILE)
    return begins[:, None] + tl.arange(0, _TILE)[None, :], (t < num_tiles)[:, None]


@triton.jit
def _flat(x):
    return tl.reshape(x, [_TILES * _TILE])


@triton.jit
def _reached(keys, weights, tiles, num_tiles, pivot, BY_COUNT: tl.constexpr):
    """Return weight or number of the candidates from key `pivot` up, the least key of theirs, the largest below it."""
    reached = tl.zeros((_TILES, _TILE), tl.int32 if BY_COUNT else tl.float64)
    least = tl.full((_TILES, _TILE), _MOST_KEY, tl.int32)
    most = tl.full((_TILES, _TILE), _LEAST_KEY, tl.int32)
    for at in range(0, num_tiles, _TILES):
        spots, is_tile = _spots(tiles, at, num_tiles)
        found = tl.load(keys + spots, mask=is_tile, other=_LEAST_KEY)
        is_up = found >= pivot
        if BY_COUNT:
            reached += is_up.to(tl.int32)
        else:
            reached += tl.where(is_up, tl.load(weights + spots, mask=is_tile, other=0.0), 0.0)
        least = tl.minimum(least, tl.where(is_up, found, _MOST_KEY))
        most = tl.maximum(most, tl.where(is_up, _LEAST_KEY, found))
    total = tl.sum(_flat(reached), axis=0).to(tl.float64)
    return total, tl.min(_flat(least), axis=0), tl.max(_flat(most), axis=0)


@triton.jit
def _num_equal(keys, tiles, num_tiles, key):
    num = tl.zeros((_TILES, _TILE), tl.int32)
    for at in range(0, num_tiles, _TILES):
        spots, is_tile = _spots(tiles, at, num_tiles)
        num += (tl.load(keys + spots, mask=is_tile, other=_LEAST_KEY) == key).to(tl.int32)
    return tl.sum(_flat(num), axis=0)


@triton.jit
def _find(
    keys, weights, tiles, num_tiles, target, low, low_ties, high, peak, temperature,
    BY_COUNT: tl.constexpr, IS_STRICT: tl.constexpr,
):  # fmt: skip
    """Return (key, ties) of the shortest prefix that reaches `target`, in weight or in number, and its weight.

    IS_STRICT      it has to exceed the target
    low, low_ties  the last of the prefix that is left; candidates of other keys are left all or none
    high           key of the largest candidate
    """
    above = tl.zeros((), tl.float64)  # what is reached by the keys above `high`
    last = low
    while low < high:
        # Halfway in value, but above `low`.
        halfway = keys_of(value_of(low) * 0.5 + value_of(high) * 0.5)
        pivot = tl.minimum(tl.maximum(halfway, low + 1), high)
        reached, least, most = _reached(keys, weights, tiles, num_tiles, pivot, BY_COUNT)
        is_enough = reached >= target
        if IS_STRICT:
            is_enough = reached > target
        if is_enough:
            low = least
        else:
            high = most
            above = reached
    ties = low_ties
    if low > last:
        ties = _num_equal(keys, tiles, num_tiles, low)
    each = _weigh(value_of(low), peak, temperature)
    steps = (target - above) / tl.maximum(each, 1e-300)
    if BY_COUNT:
        steps = target - above
        above, _, _ = _reached(keys, weights, tiles, num_tiles, low + 1, False)
    wanted = tl.ceil(steps)
    if IS_STRICT:
        wanted = tl.floor(steps) + 1.0
    taken = tl.minimum(tl.maximum(wanted, 1.0), ties.to(tl.float64))
    return low, tl.maximum(taken.to(tl.int32), 1), above + taken * each


@triton.jit
def _heavy(keys, weights, tiles, num_tiles, least_weight):
    """Return the least key of the candidates of at least some weight, and the weight of all these."""
    mass = tl.zeros((_TILES, _TILE), tl.float64)
    least = tl.full((_TILES, _TILE), _MOST_KEY, tl.int32)
    for at in range(0, num_tiles, _TILES):
        spots, is_tile = _spots(tiles, at, num_tiles)
        w = tl.load(weights + spots, mask=is_tile, other=0.0)
        is_heavy = w >= least_weight
        mass += tl.where(is_heavy, w, 0.0)
        found = tl.load(keys + spots, mask=is_tile, other=_LEAST_KEY)
        least = tl.minimum(least, tl.where(is_heavy, found, _MOST_KEY))
    return tl.min(_flat(least), axis=0), tl.sum(_flat(mass), axis=0)


@triton.jit
def _nth_equal(keys, ids, tiles, num_tiles, key, nth):
    """Return the id of the nth candidate of a key, in the order of ids."""
    passed = tl.zeros((), tl.int32)
    token = tl.full((), -1, tl.int32)
    for at in range(0, num_tiles, _TILES):
        spots, is_tile = _spots(tiles, at, num_tiles)
        is_equal = _flat(tl.load(keys + spots, mask=is_tile, other=_LEAST_KEY)) == key
        num = tl.sum(is_equal.to(tl.int32), axis=0)
        if (passed < nth) & (nth <= passed + num):
            rank = passed + tl.cumsum(is_equal.to(tl.int32), axis=0)
            at_spot = tl.max(tl.where(is_equal & (rank == nth), _flat(spots + tl.zeros_like(spots)), -1), axis=0)
            token = tl.load(ids + at_spot)
        passed += num
    return token


@triton.jit(do_not_specialize=["out_width"])
def draw(
    floats, ints, stats, plans, tiles, ids, keys, weights, out, vocab, room, out_width,
    FLOATS: tl.constexpr, INTS: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Filter one row's candidates and draw one of them."""
    take_turn(IS_EARLY)
    row = tl.program_id(0).to(tl.int64)
    reach = tl.load(plans + row * _NUM_PLANS)
    if reach >= 0.0:
        s = tl.arange(0, SEGMENTS)
        own = stats + (row * SEGMENTS + s) * _NUM_STATS
        is_segment = s * SEGMENT < vocab
        held = tl.load(own + _HELD, mask=is_segment, other=0.0).to(tl.int32)
        lowest = tl.load(own + _LOWEST, mask=is_segment & (held > 0), other=_MOST_KEY).to(tl.int32)
        mass = tl.sum(tl.load(own + _INSIDE, mask=is_segment, other=0.0), axis=0)
        outside = tl.sum(tl.load(own + _OUTSIDE, mask=is_segment, other=0.0), axis=0)
        peak = tl.load(plans + row * _NUM_PLANS + _PEAK).to(tl.float32)
        temperature = tl.load(floats + row * FLOATS)
        top_p = tl.load(floats + row * FLOATS + 1)
        min_p = tl.load(floats + row * FLOATS + 2)
        top_k = tl.load(ints + row * INTS + 3)
        u = uniform_of(ints + row * INTS)
        count = tl.sum(held, axis=0)
        tiles += row * (room // _TILE)
        ids += row * room
        keys += row * room
        weights += row * room
        if count > 0:
            num_tiles = _list_tiles(tiles, held, SEGMENT, SEGMENTS)
            highest = keys_of(peak)
            key = tl.min(lowest, axis=0)
            ties = _num_equal(keys, tiles, num_tiles, key)
            if (top_k <= 0) & ((min_p <= 0.0) | (top_p < 1.0)):
                mass += outside
            if (top_k > 0) & (top_k < count):
                key, ties, mass = _find(
                    keys, weights, tiles, num_tiles, top_k.to(tl.float64), key, ties, highest, peak, temperature,
                    True, False,
                )  # fmt: skip
            if top_p < 1.0:
                key, ties, mass = _find(
                    keys, weights, tiles, num_tiles, top_p * mass, key, ties, highest, peak, temperature, False, False
                )
            if min_p > 0.0:  # noqa: SIM102  (nothing is cut short here)
                if _weigh(value_of(key), peak, temperature) < min_p:
                    key, mass = _heavy(keys, weights, tiles, num_tiles, min_p)
                    ties = _num_equal(keys, tiles, num_tiles, key)
            key, ties, mass = _find(
                keys, weights, tiles, num_tiles, u * mass, key, ties, highest, peak, temperature, False, True
            )
            tl.store(out + row * out_width, _nth_equal(keys, ids, tiles, num_tiles, key, ties).to(tl.float64))
