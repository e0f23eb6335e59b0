"""The kernel of skinny products: BLOCK_N outputs of up to BLOCK_T tokens over one part of the inputs.

Owns nothing. Launched by `linear`. The tile is turned: weights are the left side of a product of matrices, tokens the
right, so that a few tokens waste little of it and decoded weights go from registers into it.
A gated program makes BLOCK_N / 2 outputs: the first half of its rows are rows of the gate, the second those of up.
Rows and chunks past the end are read as the last ones there: their products are thrown away, or multiplied with zeros.
With parts, each writes its sums, waits for all of its threads, and counts, with acquire and release; who counts to the
end reads all parts, from the first to the last, through L2. The order of arrival never shows.
A norm can stand between two products without a launch: who makes the sum x writes x * weight of the norm and, for each
tile, the squares of x; who multiplies with that divides its result by the root of their mean.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headrace.ops.cuda.dequantize import nibbles, signed, signed_scaled
from headrace.ops.cuda.epilogue import activate
from headrace.ops.cuda.launching import INTERPRETED, take_turn

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)


@triton.jit
def _fetch(spots, size):
    """Have `size` bytes from each place on brought to the L2 cache; nothing waits for them."""
    if not _INTERPRETED:
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0;", "=r,l,r", [spots.to(tl.int64), size],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _fetch_ahead(
    values, rows, tile, part, num_turns, n, k, width,
    FORM: tl.constexpr, EPILOGUE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Bring the first weights of a program to the L2 cache while the kernels in front still run: nothing writes them.

    About 32 KB: what some hundred programs fetch together fits beside what the kernels in front read. No branches: a
    kernel may not end before its turn."""
    if FORM == 1 or FORM == 2:
        each: tl.constexpr = BLOCK_K // (64 * FORM)
        height: tl.constexpr = BLOCK_N // 2 if EPILOGUE == 2 else BLOCK_N  # rows in one piece
        for c in tl.static_range(max(512 // BLOCK_N, 1)):
            chunk = part * num_turns * each + tl.minimum(c, num_turns * each - 1)
            spot = tl.cast(n, tl.int64) * chunk + tile * height
            _fetch(values + spot * 32, height * 64)
            if EPILOGUE == 2:
                _fetch(values + (spot + width) * 32, height * 64)
    else:
        size: tl.constexpr = values.dtype.element_ty.primitive_bitwidth // 8
        begin = part * num_turns * BLOCK_K
        _fetch(values + rows * k + begin, tl.minimum(num_turns * (BLOCK_K * size), 32768 // BLOCK_N))


@triton.jit
def _fold(acc, w, x, line, i, is_token, k, EVEN_K: tl.constexpr):
    """Add w · x over inputs `i`; the interpreter has no bf16 products.

    The sums pass through an instruction that does nothing: left to run on into the next turn, products with a side in
    registers are found to meet other uses of their sums there, and each of them is waited for alone."""
    spots = x + line[None, :] + i[:, None]
    if EVEN_K:
        a = tl.load(spots, mask=is_token[None, :], other=0.0)
    else:
        a = tl.load(spots, mask=is_token[None, :] & (i < k)[:, None], other=0.0)
    if _INTERPRETED:
        return acc + tl.dot(w.to(a.dtype).to(tl.float32), a.to(tl.float32), input_precision="ieee")
    acc = tl.dot(w.to(a.dtype), a, acc, input_precision="ieee")
    return tl.inline_asm_elementwise("", "=f,0", [acc], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _take_int8(
    acc, x, values, scales, rows, line, is_token, chunk, held, n, k,
    GROUP: tl.constexpr, SCALE_KIND: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Take in the 64 inputs of a chunk, whose weights are read from the one that is `held`."""
    kind: tl.constexpr = x.dtype.element_ty
    j = tl.arange(0, 32)
    words = tl.load(values + (rows + held * n)[:, None] * 32 + j[None, :])
    if GROUP > 0:
        pair = tl.load(scales + rows + held * n)
        w0, w1 = signed_scaled(words, pair, SCALE_KIND, kind)
    else:
        w0, w1 = signed(words, kind)
    i = chunk * 64 + j
    acc = _fold(acc, w0, x, line, i, is_token, k, EVEN_K)
    return _fold(acc, w1, x, line, i + 32, is_token, k, EVEN_K)


@triton.jit
def _take_int4(
    acc, x, values, scales, rows, line, is_token, chunk, held, n, k,
    GROUP: tl.constexpr, SCALE_KIND: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Take in the 128 inputs of a chunk, whose weights are read from the one that is `held`."""
    kind: tl.constexpr = x.dtype.element_ty
    j = tl.arange(0, 32)
    words = tl.load(values + (rows + held * n)[:, None] * 32 + j[None, :])
    # Scale and middle of each group of 32, 64 or 128.
    spots = scales + rows + held * n * (128 // GROUP)
    p0 = tl.load(spots)
    p1, p2, p3 = p0, p0, p0
    if GROUP <= 64:
        p2 = tl.load(spots + n * (64 // GROUP))
        p3 = p2
    if GROUP == 32:
        p1 = tl.load(spots + n)
        p3 = tl.load(spots + 3 * n)
    w0, w1, w2, w3 = nibbles(words, p0, p1, p2, p3, SCALE_KIND, kind)
    i = chunk * 128 + j
    acc = _fold(acc, w0, x, line, i, is_token, k, EVEN_K)
    acc = _fold(acc, w1, x, line, i + 32, is_token, k, EVEN_K)
    acc = _fold(acc, w2, x, line, i + 64, is_token, k, EVEN_K)
    return _fold(acc, w3, x, line, i + 96, is_token, k, EVEN_K)


@triton.jit
def _finish(
    acc, out, bias, squares, next_weight, next_out, next_squares, tile, first, num_tokens, k, width,
    head_scale, softcap, eps,
    EPILOGUE: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    NUM_SQUARES: tl.constexpr, HAS_NEXT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Finish the norm of what was multiplied, add the bias, apply the epilogue, store, begin the norm that follows.

    Of BLOCK_T tokens from the `first` on; places within these have 32 bits, so that those of large tiles find room."""
    t = tl.arange(0, BLOCK_T)
    tokens = first + t
    is_token = tokens < num_tokens
    if NUM_SQUARES > 0:
        wide: tl.constexpr = triton.next_power_of_2(NUM_SQUARES)
        i = tl.arange(0, wide)
        held = tl.load(
            squares + i[:, None] * num_tokens + tokens[None, :],
            mask=(i < NUM_SQUARES)[:, None] & is_token[None, :], other=0.0,
        )  # fmt: skip
        acc = acc / tl.sqrt(tl.sum(held, axis=0) / k + eps)[None, :]
    if EPILOGUE == 2:
        half: tl.constexpr = BLOCK_N // 2
        cols = tile * half + tl.arange(0, half)
        is_col = cols < width
        gate, acc = tl.split(tl.permute(tl.reshape(acc, (2, half, BLOCK_T)), (1, 2, 0)))
        if HAS_BIAS:
            gate += tl.load(bias + cols, mask=is_col, other=0.0)[:, None]
            acc += tl.load(bias + width + cols, mask=is_col, other=0.0)[:, None]
        acc = activate(gate, ACTIVATION) * acc
    else:
        cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        is_col = cols < width
        if HAS_BIAS:
            acc += tl.load(bias + cols, mask=is_col, other=0.0)[:, None]
    acc = acc * head_scale
    if HAS_SOFTCAP:
        acc = softcap * (1.0 - 2.0 / (tl.exp(2.0 * acc / softcap) + 1.0))
    mask = is_col[:, None] & is_token[None, :]
    corner = tl.cast(first, tl.int64) * width
    offsets = t[None, :] * width + cols[:, None]
    spots = out + corner + offsets
    if EPILOGUE == 1:
        acc += tl.load(spots, mask=mask, other=0.0).to(tl.float32)
    tl.store(spots, acc.to(out.dtype.element_ty), mask=mask)
    if HAS_NEXT:
        y = acc * tl.load(next_weight + cols, mask=is_col, other=0.0)[:, None]
        tl.store(next_out + corner + offsets, y.to(next_out.dtype.element_ty), mask=mask)
        total = tl.sum(tl.where(mask, acc * acc, 0.0), axis=0)
        tl.store(next_squares + tile * num_tokens + tokens, total, mask=is_token)


@triton.jit
def _sum_parts(
    sums, step, r, out, bias, squares, next_weight, next_out, next_squares, tile, begin, first,
    num_tokens, k, width, head_scale, softcap, eps,
    EPILOGUE: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    NUM_PARTS: tl.constexpr, NUM_SQUARES: tl.constexpr, HAS_NEXT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Add up what all parts wrote of BLOCK_T tokens of a tile, from the `first` of those that `begin` there, and finish
    it."""
    t = first + tl.arange(0, BLOCK_T)
    spots = sums + t[None, :] * BLOCK_N + r[:, None]
    is_token = (begin + t < num_tokens)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    # All reads of small tiles are under way at once; large ones have no registers for that.
    for i in tl.range(0, NUM_PARTS, loop_unroll_factor=NUM_PARTS if BLOCK_T <= 16 else 2):
        acc += tl.load(spots + i * step, mask=is_token, other=0.0, cache_modifier=".cg")
    _finish(
        acc, out, bias, squares, next_weight, next_out, next_squares, tile, begin + first, num_tokens, k, width,
        head_scale, softcap, eps,
        EPILOGUE, ACTIVATION, HAS_BIAS, HAS_SOFTCAP, NUM_SQUARES, HAS_NEXT, BLOCK_N, BLOCK_T,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens", "num_turns"])
def linear_kernel(
    x, values, scales, bias, out, partial, counters, squares, next_weight, next_out, next_squares,
    num_tokens, n, k, width, num_chunks, num_turns, head_scale, softcap, eps,
    FORM: tl.constexpr, GROUP: tl.constexpr, SCALE_KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr, ACTIVATION: tl.constexpr, HAS_SOFTCAP: tl.constexpr, NUM_PARTS: tl.constexpr,
    NUM_SQUARES: tl.constexpr, HAS_NEXT: tl.constexpr, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Take `num_turns` times BLOCK_K inputs, from the part's first on."""
    tile, part = tl.program_id(1), tl.program_id(2)
    r = tl.arange(0, BLOCK_N)
    if EPILOGUE == 2:
        half: tl.constexpr = BLOCK_N // 2
        cols = tile * half + r % half
        if not EVEN_N:
            cols = tl.minimum(cols, width - 1)
        rows = (cols + r // half * width).to(tl.int64)
    else:
        cols = tile * BLOCK_N + r
        if not EVEN_N:
            cols = tl.minimum(cols, width - 1)
        rows = cols.to(tl.int64)
    if IS_EARLY and EVEN_K and EVEN_N:
        _fetch_ahead(values, rows, tile, part, num_turns, n, k, width, FORM, EPILOGUE, BLOCK_N, BLOCK_K)
    take_turn(IS_EARLY)
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = tokens < num_tokens
    line = tokens.to(tl.int64) * k
    acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    first = part * num_turns
    if FORM == 1 or FORM == 2:  # int8, int4: chunks of 64 bytes
        turn_chunks: tl.constexpr = BLOCK_K // (64 * FORM)
        wide = tl.cast(n, tl.int64)
        for turn in range(first, first + num_turns):
            for c in tl.static_range(turn_chunks):
                chunk = turn * turn_chunks + c
                held = chunk if EVEN_K else tl.minimum(chunk, num_chunks - 1)
                if FORM == 1:
                    acc = _take_int8(
                        acc, x, values, scales, rows, line, is_token, chunk, held, wide, k, GROUP, SCALE_KIND, EVEN_K
                    )
                else:
                    acc = _take_int4(
                        acc, x, values, scales, rows, line, is_token, chunk, held, wide, k, GROUP, SCALE_KIND, EVEN_K
                    )
    else:
        for turn in range(first, first + num_turns):
            i = turn * BLOCK_K + tl.arange(0, BLOCK_K)
            spots = values + rows[:, None] * k + i[None, :]
            w = tl.load(spots) if EVEN_K else tl.load(spots, mask=(i < k)[None, :], other=0.0)
            if FORM == 3:
                w = w.to(tl.float32)
            acc = _fold(acc, w, x, line, i, is_token, k, EVEN_K)
    if FORM % 2 == 1 and GROUP == 0:
        acc *= tl.load(scales + rows)[:, None]
    # A tile of many tokens is finished by halves: all of its numbers beside what they are added to find no room.
    some: tl.constexpr = 64 if BLOCK_T > 64 else BLOCK_T
    begin = tl.program_id(0) * BLOCK_T
    if NUM_PARTS == 1:
        if some < BLOCK_T:
            acc, rest = tl.split(tl.permute(tl.reshape(acc, (BLOCK_N, 2, some)), (0, 2, 1)))
            _finish(
                rest, out, bias, squares, next_weight, next_out, next_squares, tile, begin + some, num_tokens, k, width,
                head_scale, softcap, eps,
                EPILOGUE, ACTIVATION, HAS_BIAS, HAS_SOFTCAP, NUM_SQUARES, HAS_NEXT, BLOCK_N, some,
            )  # fmt: skip
        _finish(
            acc, out, bias, squares, next_weight, next_out, next_squares, tile, begin, num_tokens, k, width,
            head_scale, softcap, eps,
            EPILOGUE, ACTIVATION, HAS_BIAS, HAS_SOFTCAP, NUM_SQUARES, HAS_NEXT, BLOCK_N, some,
        )  # fmt: skip
    else:
        place = tl.program_id(0) * tl.num_programs(1) + tile
        num_places = tl.num_programs(0) * tl.num_programs(1)
        spots = tl.arange(0, BLOCK_T)[None, :] * BLOCK_N + r[:, None]
        sums = partial + place.to(tl.int64) * (BLOCK_T * BLOCK_N)
        step = num_places.to(tl.int64) * (BLOCK_T * BLOCK_N)
        tl.store(sums + part * step + spots, acc, mask=is_token[None, :])
        tl.debug_barrier()  # one thread counts for all of them, once all have written
        if tl.atomic_add(counters + place, 1, sem="acq_rel", scope="gpu") == NUM_PARTS - 1:
            tl.debug_barrier()  # … and has seen what the others wrote before any thread reads it
            tl.store(counters + place, 0)
            for piece in tl.static_range(BLOCK_T // some):
                _sum_parts(
                    sums, step, r, out, bias, squares, next_weight, next_out, next_squares, tile, begin, piece * some,
                    num_tokens, k, width, head_scale, softcap, eps, EPILOGUE, ACTIVATION, HAS_BIAS, HAS_SOFTCAP,
                    NUM_PARTS, NUM_SQUARES, HAS_NEXT, BLOCK_N, some,
                )  # fmt: skip
