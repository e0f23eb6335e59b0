"""The kernels that draw: candidates are gathered segment by segment, then one program a row searches among them.

Owns nothing. Launched by `sampling`, whose docstring has scratch and letters; `sampling_scan` found how far they reach.
Candidates stand in the order of their ids. A search for a key halves the interval that it must lie in, and draws its
ends to the candidates that are there: about as many rounds as the logarithm of their number, never more than of floats.
Weights and sums are fp64; those of tokens that are not gathered are summed from fp32 exponentials.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headrace.ops.cuda.launching import take_turn
from headrace.ops.cuda.sampling_scan import (
    HELD,
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
)  # fmt: skip

_HELD: tl.constexpr = tl.constexpr(HELD)
_OUTSIDE: tl.constexpr = tl.constexpr(OUTSIDE)
_SUM: tl.constexpr = tl.constexpr(SUM)
_TOP: tl.constexpr = tl.constexpr(TOP)
_PEAK: tl.constexpr = tl.constexpr(PEAK)
_NUM_STATS: tl.constexpr = tl.constexpr(NUM_STATS)
_NUM_PLANS: tl.constexpr = tl.constexpr(NUM_PLANS)
_LEAST_KEY: tl.constexpr = tl.constexpr(-0x7FFFFFFF)  # outside of what numbers have
_MOST_KEY: tl.constexpr = tl.constexpr(0x7FFFFFFF)


@triton.jit
def gather(
    logits, floats, stats, plans, ids, vocab, room,
    FLOATS: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Write the ids of a segment's candidates to its part of the row's `room`, and the weight of all others."""
    take_turn(IS_EARLY)
    segment = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    reach = tl.load(plans + row * _NUM_PLANS).to(tl.float32)
    if reach >= 0.0:
        peak = tl.load(plans + row * _NUM_PLANS + _PEAK).to(tl.float32)
        own = stats + (row * SEGMENTS + segment) * _NUM_STATS
        rate = rate_of(tl.load(floats + row * FLOATS))
        apart = (peak - tl.load(own + _TOP).to(tl.float32)) * rate
        num = tl.zeros((), tl.int32)
        outside = tl.load(own + _SUM) * tl.exp(-apart).to(tl.float64)
        if apart <= reach:
            # Four neighbours at a time: what is counted over all of a program are their sums.
            four = tl.arange(0, 4)[None, :]
            i = segment * SEGMENT + tl.arange(0, SEGMENT // 4)[:, None] * 4 + four
            z = tl.load(logits + row * vocab + i, mask=i < vocab, other=float("-inf"))
            distances = (peak - z) * rate
            is_held = distances <= tl.minimum(reach, 3e38)  # never -inf
            held = is_held.to(tl.int32)
            sums = tl.sum(held, axis=1)
            ends = tl.cumsum(sums, axis=0)
            place = (ends - sums)[:, None] + tl.cumsum(held, axis=1) - held
            tl.store(ids + row * room + segment * SEGMENT + place, i, mask=is_held)
            num = tl.max(ends, axis=0)
            outside = tl.sum(tl.sum(tl.where(is_held, 0.0, tl.exp(-distances)), axis=1).to(tl.float64), axis=0)
        tl.store(own + _HELD, num.to(tl.float64))
        tl.store(own + _OUTSIDE, outside)


@triton.jit
def _weigh(z, peak, temperature):
    return tl.exp((z.to(tl.float64) - peak.to(tl.float64)) / temperature)


@triton.jit
def _candidate(ends, ids, i, count, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr):
    """Return the ids of the candidates numbered i, from the segments that hold them."""
    segment = tl.zeros_like(i)
    step = tl.full((), SEGMENTS // 2, tl.int32)
    while step > 0:
        is_behind = tl.load(ends + segment + step - 1) <= i
        segment = tl.where(is_behind & (i < count), segment + step, segment)
        step = step // 2
    first = tl.load(ends + segment - 1, mask=segment > 0, other=0)
    return tl.load(ids + segment * SEGMENT + i - first, mask=i < count, other=0)


@triton.jit
def _reached(values, weights, count, pivot, BY_COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Return weight or number of the candidates from key `pivot` up, the least key of theirs, the largest below it."""
    reached = tl.zeros((BLOCK,), tl.int32 if BY_COUNT else tl.float64)
    least = tl.full((BLOCK,), _MOST_KEY, tl.int32)
    most = tl.full((BLOCK,), _LEAST_KEY, tl.int32)
    for at in range(0, count, BLOCK):
        i = at + tl.arange(0, BLOCK)
        keys = keys_of(tl.load(values + i, mask=i < count, other=float("-inf")))
        is_up = (i < count) & (keys >= pivot)
        if BY_COUNT:
            reached += is_up.to(tl.int32)
        else:
            reached += tl.where(is_up, tl.load(weights + i, mask=i < count, other=0.0), 0.0)
        least = tl.minimum(least, tl.where(is_up, keys, _MOST_KEY))
        most = tl.maximum(most, tl.where(is_up, _LEAST_KEY, keys))
    return tl.sum(reached, axis=0).to(tl.float64), tl.min(least, axis=0), tl.max(most, axis=0)


@triton.jit
def _find(
    values, weights, count, target, low, low_ties, high, peak, temperature,
    BY_COUNT: tl.constexpr, IS_STRICT: tl.constexpr, BLOCK: tl.constexpr,
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
        reached, least, most = _reached(values, weights, count, pivot, BY_COUNT, BLOCK)
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
        ties = _num_equal(values, count, low, BLOCK)
    each = _weigh(value_of(low), peak, temperature)
    steps = (target - above) / tl.maximum(each, 1e-300)
    if BY_COUNT:
        steps = target - above
        above, _, _ = _reached(values, weights, count, low + 1, False, BLOCK)
    wanted = tl.ceil(steps)
    if IS_STRICT:
        wanted = tl.floor(steps) + 1.0
    taken = tl.minimum(tl.maximum(wanted, 1.0), ties.to(tl.float64))
    return low, tl.maximum(taken.to(tl.int32), 1), above + taken * each


@triton.jit
def _num_equal(values, count, key, BLOCK: tl.constexpr):
    num = tl.zeros((BLOCK,), tl.int32)
    for at in range(0, count, BLOCK):
        i = at + tl.arange(0, BLOCK)
        z = tl.load(values + i, mask=i < count, other=float("-inf"))
        num += ((i < count) & (keys_of(z) == key)).to(tl.int32)
    return tl.sum(num, axis=0)


@triton.jit
def _heavy(values, weights, count, least_weight, BLOCK: tl.constexpr):
    """Return the least key of the candidates of at least some weight, and the weight of all these."""
    mass = tl.zeros((BLOCK,), tl.float64)
    least = tl.full((BLOCK,), _MOST_KEY, tl.int32)
    for at in range(0, count, BLOCK):
        i = at + tl.arange(0, BLOCK)
        w = tl.load(weights + i, mask=i < count, other=-1.0)
        keys = keys_of(tl.load(values + i, mask=i < count, other=float("-inf")))
        is_heavy = (i < count) & (w >= least_weight)
        mass += tl.where(is_heavy, w, 0.0)
        least = tl.minimum(least, tl.where(is_heavy, keys, _MOST_KEY))
    return tl.min(least, axis=0), tl.sum(mass, axis=0)


@triton.jit
def _nth_equal(values, ids, count, key, nth, BLOCK: tl.constexpr):
    """Return the id of the nth candidate of a key, in the order of ids."""
    passed = tl.zeros((), tl.int32)
    token = tl.full((), -1, tl.int32)
    for at in range(0, count, BLOCK):
        i = at + tl.arange(0, BLOCK)
        z = tl.load(values + i, mask=i < count, other=float("-inf"))
        is_equal = (i < count) & (keys_of(z) == key)
        rank = passed + tl.cumsum(is_equal.to(tl.int32), axis=0)
        tokens = tl.load(ids + i, mask=i < count, other=0)
        token = tl.maximum(token, tl.max(tl.where(is_equal & (rank == nth), tokens, -1), axis=0))
        passed += tl.sum(is_equal.to(tl.int32), axis=0)
    return token


@triton.jit(do_not_specialize=["out_width"])
def draw(
    logits, floats, ints, stats, plans, ends, ids, values, weights, out, vocab, room, out_width,
    FLOATS: tl.constexpr, INTS: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Filter one row's candidates and draw one of them."""
    take_turn(IS_EARLY)
    row = tl.program_id(0).to(tl.int64)
    reach = tl.load(plans + row * _NUM_PLANS)
    if reach >= 0.0:
        s = tl.arange(0, SEGMENTS)
        own = stats + (row * SEGMENTS + s) * _NUM_STATS
        is_segment = s * SEGMENT < vocab
        held = tl.cumsum(tl.load(own + _HELD, mask=is_segment, other=0.0).to(tl.int32), axis=0)
        outside = tl.sum(tl.load(own + _OUTSIDE, mask=is_segment, other=0.0), axis=0)
        ends += row * SEGMENTS
        tl.store(ends + s, held)
        count = tl.max(held, axis=0)
        tl.debug_barrier()
        # Move the candidates together, weighed. They move forward, so none is written over before it is read.
        ids += row * room
        values += row * room
        weights += row * room
        peak = tl.load(plans + row * _NUM_PLANS + _PEAK).to(tl.float32)
        temperature = tl.load(floats + row * FLOATS)
        inside = tl.zeros((BLOCK,), tl.float64)
        lowest = tl.full((BLOCK,), _MOST_KEY, tl.int32)
        for at in range(0, count, BLOCK):
            i = at + tl.arange(0, BLOCK)
            tokens = _candidate(ends, ids, i, count, SEGMENT, SEGMENTS)
            z = tl.load(logits + row * vocab + tokens, mask=i < count, other=float("-inf"))
            w = _weigh(z, peak, temperature)
            inside += w
            lowest = tl.minimum(lowest, tl.where(i < count, keys_of(z), _MOST_KEY))
            tl.debug_barrier()
            tl.store(ids + i, tokens, mask=i < count)
            tl.store(values + i, z, mask=i < count)
            tl.store(weights + i, w, mask=i < count)
        tl.debug_barrier()
        if count > 0:
            top_k = tl.load(ints + row * INTS + 3)
            top_p = tl.load(floats + row * FLOATS + 1)
            min_p = tl.load(floats + row * FLOATS + 2)
            highest = keys_of(peak)
            key = tl.min(lowest, axis=0)
            ties = _num_equal(values, count, key, BLOCK)
            mass = tl.sum(inside, axis=0)
            if (top_k <= 0) & ((min_p <= 0.0) | (top_p < 1.0)):
                mass += outside
            if (top_k > 0) & (top_k < count):
                key, ties, mass = _find(
                    values, weights, count, top_k.to(tl.float64), key, ties, highest, peak, temperature,
                    True, False, BLOCK,
                )  # fmt: skip
            if top_p < 1.0:
                key, ties, mass = _find(
                    values, weights, count, top_p * mass, key, ties, highest, peak, temperature, False, False, BLOCK
                )
            if min_p > 0.0:  # noqa: SIM102  (no short circuit here)
                if _weigh(value_of(key), peak, temperature) < min_p:
                    key, mass = _heavy(values, weights, count, min_p, BLOCK)
                    ties = _num_equal(values, count, key, BLOCK)
            u = uniform_of(ints + row * INTS)
            key, ties, mass = _find(
                values, weights, count, u * mass, key, ties, highest, peak, temperature, False, True, BLOCK
            )
            tl.store(out + row * out_width, _nth_equal(values, ids, count, key, ties, BLOCK).to(tl.float64))
