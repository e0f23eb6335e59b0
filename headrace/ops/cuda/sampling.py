"""Drawing tokens on the device, by the rules of `sampling.sampler`, with its counter-based random numbers.

Owns nothing. Called by `executor.cuda`. One program draws one row, so the batch never changes a sample.
A kept set of tokens is always a prefix of the ranking (value falling, id rising), and so is written as (key, ties): all
values above `key`, and of those equal to it the first `ties` by id. No row is sorted: a pass over the logits finds by
what distance from the largest everything that can matter is reached, a second one gathers these few candidates, and
top-k, top-p, min-p and the draw are each a search for a key among them.
Weights and sums are fp64; those of tokens that are not gathered are summed from fp32 exponentials.
Letters: R rows, V vocabulary, C parts of a row's scratch.
Source: Philox4x32-10, Salmon et al. 2011.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.launching import attempt

SAMPLED, NOT_FINITE, NOTHING_LEFT = 0, 1, 2

# Columns of `Lines.floats` (fp64) and `Lines.ints` (int32), written by the executor.
TEMPERATURE, TOP_P, MIN_P, REPETITION, FREQUENCY, PRESENCE, NUM_FLOATS = range(7)
SEED_LOW, SEED_HIGH, COUNTER, TOP_K, TARGET, NUM_INTS = range(6)
# Columns of the result, fp64: exact for every id and every fp32 number. Then num_top ids and num_top log probabilities.
OUT_TOKEN, OUT_STATUS, OUT_PEAK, OUT_LOGPROB, OUT_TOP = range(5)

_DISTANCES = 16  # tried at once; in units of the temperature


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
    z = tl.where(is_seen, tl.where(z > 0, z / r, z * r), z)
    count = tl.load(counts + entry, mask=inside, other=0)
    z -= tl.load(floats + line * NUM + FREQ, mask=inside, other=0.0).to(tl.float32) * count.to(tl.float32)
    presence = tl.load(floats + line * NUM + PRES, mask=inside, other=0.0).to(tl.float32)
    z -= tl.where(count > 0, presence, 0.0)
    z += tl.load(biases + entry, mask=inside, other=0.0)
    tl.store(spot, z, mask=inside)


@triton.jit
def _philox_uniform(k0, k1, c0):
    """Return the number in [0, 1) for a key and a counter (uint32 each), as `sampling.random.uniform`."""
    c1 = tl.zeros_like(c0)
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    k0, k1, c0 = k0.to(tl.uint64), k1.to(tl.uint64), c0.to(tl.uint64)
    c1, c2, c3 = c1.to(tl.uint64), c2.to(tl.uint64), c3.to(tl.uint64)
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
def _keys(z):
    """Map fp32 to int64 in the same order."""
    bits = z.to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@triton.jit
def _value(key):
    """Return the fp32 of a key."""
    bits = tl.where(key < 0, (-key) | 0x80000000, key)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def _weigh(z, peak, temperature):
    return tl.exp((z.to(tl.float64) - peak.to(tl.float64)) / temperature)


@triton.jit
def _above(values, count, key, kept_key, kept_ties, peak, temperature, BLOCK: tl.constexpr):
    """Return weight and number of the candidates kept so far whose key is above `key`, and likewise of those equal."""
    above_mass = tl.zeros((BLOCK,), tl.float64)
    above_num = tl.zeros((BLOCK,), tl.int64)
    equal_num = tl.zeros((BLOCK,), tl.int64)
    for at in range(0, count, BLOCK):
        i = at + tl.arange(0, BLOCK)
        z = tl.load(values + i, mask=i < count, other=float("-inf"))
        keys = _keys(z)
        is_above = (i < count) & (keys > key) & (keys > kept_key)
        above_mass += tl.where(is_above, _weigh(z, peak, temperature), 0.0)
        above_num += is_above.to(tl.int64)
        equal_num += ((i < count) & (keys == key)).to(tl.int64)
    mass, num, equal = tl.sum(above_mass, axis=0), tl.sum(above_num, axis=0), tl.sum(equal_num, axis=0)
    is_below = key < kept_key
    mass += tl.where(is_below, kept_ties.to(tl.float64) * _weigh(_value(kept_key), peak, temperature), 0.0)
    num += tl.where(is_below, kept_ties, 0)
    equal = tl.where(is_below, 0, tl.where(key == kept_key, kept_ties, equal))
    return mass, num, equal


@triton.jit
def _find(
    values, count, target, kept_key, kept_ties, low, high, peak, temperature,
    BY_COUNT: tl.constexpr, IS_STRICT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return (key, ties) of the shortest prefix of the kept ones that reaches `target`, in weight or in number.

    IS_STRICT  it has to exceed the target
    low, high  keys of the least and the largest candidate: the result is between them
    """
    while low < high:
        middle = low + (high - low + 1) // 2  # rounds towards `high`: low == middle never repeats
        mass, num, _ = _above(values, count, middle - 1, kept_key, kept_ties, peak, temperature, BLOCK)
        reached = mass
        if BY_COUNT:
            reached = num.to(tl.float64)
        is_enough = reached >= target
        if IS_STRICT:
            is_enough = reached > target
        if is_enough:
            low = middle
        else:
            high = middle - 1
    mass, num, equal = _above(values, count, low, kept_key, kept_ties, peak, temperature, BLOCK)
    each = _weigh(_value(low), peak, temperature)
    reached = mass
    if BY_COUNT:
        reached = num.to(tl.float64)
        each = each * 0.0 + 1.0
    steps = (target - reached) / tl.maximum(each, 1e-300)
    wanted = tl.ceil(steps)
    if IS_STRICT:
        wanted = tl.floor(steps) + 1.0
    ties = tl.minimum(tl.maximum(wanted, 1.0), equal.to(tl.float64)).to(tl.int64)
    return low, tl.maximum(ties, 1)


@triton.jit(do_not_specialize=["out_width"])
def _draw(
    logits, floats, ints, values, ids, out, vocab, out_width,
    FLOATS: tl.constexpr, INTS: tl.constexpr, DISTANCES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_at = logits + row * vocab
    result = out + row * out_width
    target_id = tl.load(ints + row * INTS + 4)
    status = tl.load(result + 1)
    if (target_id < 0) & (status == 0.0):
        top = tl.full((BLOCK,), float("-inf"), tl.float32)
        where = tl.zeros((BLOCK,), tl.int32)
        for at in range(0, vocab, BLOCK):
            i = at + tl.arange(0, BLOCK)
            z = tl.load(z_at + i, mask=i < vocab, other=float("-inf"))
            where = tl.where(z > top, i, where)
            top = tl.maximum(top, z)
        peak = tl.max(top, axis=0)
        token = tl.min(tl.where(top == peak, where, vocab), axis=0)
        temperature = tl.load(floats + row * FLOATS)
        if peak == float("-inf"):
            tl.store(result + 1, 2.0)
        elif temperature > 0.0:
            top_k = tl.load(ints + row * INTS + 3).to(tl.int64)
            top_p = tl.load(floats + row * FLOATS + 1)
            min_p = tl.load(floats + row * FLOATS + 2)
            u = _philox_uniform(
                tl.load(ints + row * INTS).to(tl.uint32, bitcast=True),
                tl.load(ints + row * INTS + 1).to(tl.uint32, bitcast=True),
                tl.load(ints + row * INTS + 2).to(tl.uint32, bitcast=True),
            )
            # How far from the largest everything that can matter is: each distance with its weight and number.
            steps = tl.arange(0, DISTANCES).to(tl.float32)
            narrow = tl.maximum(temperature.to(tl.float32), 1e-37)
            distances = (0.5 + steps * (1.0 + 0.125 * steps)) * narrow
            masses = tl.zeros((DISTANCES,), tl.float64)
            nums = tl.zeros((DISTANCES,), tl.int64)
            total = tl.zeros((BLOCK,), tl.float64)
            for at in range(0, vocab, BLOCK):
                i = at + tl.arange(0, BLOCK)
                z = tl.load(z_at + i, mask=i < vocab, other=float("-inf"))
                w = tl.exp((z - peak) / narrow).to(tl.float64)
                total += w
                near = (peak - z)[None, :] <= distances[:, None]
                masses += tl.sum(tl.where(near, w[None, :], 0.0), axis=1)
                nums += tl.sum(near.to(tl.int64), axis=1)
            whole = tl.sum(total, axis=0)
            share = tl.where(top_p < 1.0, top_p, u)
            enough = masses > share * whole
            if top_k > 0:
                enough = nums >= top_k
            elif (min_p > 0.0) & (top_p >= 1.0):
                enough = tl.exp(-distances.to(tl.float64) / temperature) < min_p
            reach = tl.min(tl.where(enough, distances, float("inf")), axis=0)
            # Gather the candidates, in the order of their ids.
            held = values + row * vocab
            held_ids = ids + row * vocab
            count = 0
            least = tl.full((BLOCK,), float("inf"), tl.float32)
            for at in range(0, vocab, BLOCK):
                i = at + tl.arange(0, BLOCK)
                z = tl.load(z_at + i, mask=i < vocab, other=float("-inf"))
                is_held = (i < vocab) & (peak - z <= reach) & (z > float("-inf"))
                place = count + tl.cumsum(is_held.to(tl.int32), axis=0) - 1
                tl.store(held + place, z, mask=is_held)
                tl.store(held_ids + place, i, mask=is_held)
                least = tl.minimum(least, tl.where(is_held, z, float("inf")))
                count += tl.sum(is_held.to(tl.int32), axis=0)
            tl.debug_barrier()
            lowest, highest = _keys(tl.min(least, axis=0)), _keys(peak)
            key = lowest
            none = tl.zeros((), tl.int64)
            _, _, ties = _above(held, count, lowest, lowest - 1, none, peak, temperature, BLOCK)
            mass = whole
            if top_k > 0:
                if top_k < count:
                    key, ties = _find(
                        held, count, top_k.to(tl.float64), key, ties, lowest, highest, peak, temperature,
                        True, False, BLOCK,
                    )  # fmt: skip
                mass, _, _ = _above(held, count, lowest - 1, key, ties, peak, temperature, BLOCK)
            if top_p < 1.0:
                key, ties = _find(
                    held, count, top_p * mass, key, ties, key, highest, peak, temperature, False, False, BLOCK
                )
                mass, _, _ = _above(held, count, lowest - 1, key, ties, peak, temperature, BLOCK)
            if min_p > 0.0:
                if _weigh(_value(key), peak, temperature) < min_p:
                    far = tl.zeros((BLOCK,), tl.int64) + highest
                    for at in range(0, count, BLOCK):
                        i = at + tl.arange(0, BLOCK)
                        z = tl.load(held + i, mask=i < count, other=float("-inf"))
                        is_far = (i < count) & (_weigh(z, peak, temperature) >= min_p)
                        far = tl.minimum(far, tl.where(is_far, _keys(z), highest))
                    key = tl.maximum(tl.min(far, axis=0), key)
                    _, _, ties = _above(held, count, key, lowest - 1, none, peak, temperature, BLOCK)
                mass, _, _ = _above(held, count, lowest - 1, key, ties, peak, temperature, BLOCK)
            key, ties = _find(held, count, u * mass, key, ties, key, highest, peak, temperature, False, True, BLOCK)
            # The `ties`-th candidate of that value, by id: they were gathered in that order.
            passed = tl.zeros((), tl.int64)
            for at in range(0, count, BLOCK):
                i = at + tl.arange(0, BLOCK)
                z = tl.load(held + i, mask=i < count, other=float("-inf"))
                is_equal = (i < count) & (_keys(z) == key)
                rank = passed + tl.cumsum(is_equal.to(tl.int64), axis=0)
                candidate = tl.load(held_ids + i, mask=i < count, other=0)
                found = tl.max(tl.where(is_equal & (rank == ties), candidate, -1), axis=0)
                token = tl.where(found >= 0, found, token)
                passed += tl.sum(is_equal.to(tl.int64), axis=0)
        tl.store(result, token.to(tl.float64))


@triton.jit(do_not_specialize=["out_width"])
def _look(logits, out, vocab, out_width, BLOCK: tl.constexpr):
    """Find each line's largest logit and whether it can be drawn from."""
    row = tl.program_id(0).to(tl.int64)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    bad = tl.zeros((BLOCK,), tl.int32)
    for at in range(0, vocab, BLOCK):
        i = at + tl.arange(0, BLOCK)
        z = tl.load(logits + row * vocab + i, mask=i < vocab, other=float("-inf"))
        is_bad = (z != z) | (z == float("inf"))
        bad += is_bad.to(tl.int32)
        top = tl.maximum(top, tl.where(z != z, float("-inf"), z))
    peak = tl.max(top, axis=0)
    is_broken = (tl.sum(bad, axis=0) > 0) | (peak == float("-inf"))
    result = out + row * out_width
    tl.store(result, 0.0)
    tl.store(result + 1, tl.where(is_broken, 1.0, 0.0))
    tl.store(result + 2, peak.to(tl.float64))


@triton.jit(do_not_specialize=["out_width", "num_top"])
def _list_best(logits, out, vocab, out_width, num_top, BLOCK: tl.constexpr):
    """Write the log normalizer to the place of the log probability, and the best `num_top` ids with theirs."""
    row = tl.program_id(0).to(tl.int64)
    z_at = logits + row * vocab
    result = out + row * out_width
    if tl.load(result + 1) == 0.0:
        peak = tl.load(result + 2)
        total = tl.zeros((BLOCK,), tl.float64)
        for at in range(0, vocab, BLOCK):
            i = at + tl.arange(0, BLOCK)
            z = tl.load(z_at + i, mask=i < vocab, other=float("-inf"))
            total += tl.exp(z.to(tl.float64) - peak)
        shift = peak + tl.log(tl.sum(total, axis=0))
        tl.store(result + 3, shift)
        # Each round takes the next in the order (value falling, id rising).
        last = peak.to(tl.float32)
        last_id = -1
        for rank in range(num_top):
            top = tl.full((BLOCK,), float("-inf"), tl.float32)
            where = tl.zeros((BLOCK,), tl.int32) + vocab
            for at in range(0, vocab, BLOCK):
                i = at + tl.arange(0, BLOCK)
                z = tl.load(z_at + i, mask=i < vocab, other=float("-inf"))
                is_next = (i < vocab) & ((z < last) | ((z == last) & (i > last_id)))
                is_better = is_next & ((z > top) | ((z == top) & (where == vocab)))
                where = tl.where(is_better, i, where)
                top = tl.where(is_better, z, top)
            # Lanes without any candidate stand behind those whose candidate is -inf.
            best = tl.max(tl.where(where < vocab, top, float("-inf")), axis=0)
            last_id = tl.min(tl.where((top == best) & (where < vocab), where, vocab), axis=0)
            last = best
            tl.store(result + 4 + rank, last_id.to(tl.float64))
            tl.store(result + 4 + num_top + rank, best.to(tl.float64) - shift)


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
    out: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Draw or score every line; return [R, 4 + 2·num_top] fp64 (see the columns above), None if kernels do not compile.

    logits   [R, V] fp32, not changed
    num_top  best alternatives of each line; None: no log probabilities at all
    out      where the result goes; None: new memory
    Cost: 4 passes over a row's logits, 2 if it is greedy, and about 30 over its few candidates for each filter.
    """
    found: list[torch.Tensor] = []
    attempt("sampling", logits, lambda: found.append(_draw_all(logits, lines, adjustments, num_top, out)))
    return found[0] if found else None


def _draw_all(
    logits: torch.Tensor,
    lines: Lines,
    adjustments: Adjustments | None,
    num_top: int | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    rows, vocab = logits.shape
    width = 4 + 2 * (num_top or 0)
    out = torch.empty((rows, width), dtype=torch.float64, device=logits.device) if out is None else out
    block = min(triton.next_power_of_2(vocab), 2048)
    warps = max(block // 256, 1)
    _look[(rows,)](logits, out, vocab, width, BLOCK=block, num_warps=warps)
    if num_top is not None:
        _list_best[(rows,)](logits, out, vocab, width, num_top, BLOCK=block, num_warps=warps)
    adjusted = logits
    if adjustments is not None:
        adjusted = logits.clone()
        entries = len(adjustments.ids)
        _adjust[(triton.cdiv(entries, 128),)](
            adjusted, adjustments.lines, adjustments.ids, adjustments.seen, adjustments.counts, adjustments.biases,
            lines.floats, entries, vocab,
            NUM=NUM_FLOATS, REP=REPETITION, FREQ=FREQUENCY, PRES=PRESENCE, BLOCK=128,
        )  # fmt: skip
    values = torch.empty_like(logits)
    ids = torch.empty((rows, vocab), dtype=torch.int32, device=logits.device)
    _draw[(rows,)](
        adjusted, lines.floats, lines.ints, values, ids, out, vocab, width,
        FLOATS=NUM_FLOATS, INTS=NUM_INTS, DISTANCES=_DISTANCES, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    if num_top is not None:
        _pick_logprob[(rows,)](logits, out, lines.ints, vocab, width, INTS=NUM_INTS, num_warps=1)
    return out
