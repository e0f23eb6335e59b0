"""Rows of a weight as plain numbers, in one pass: tokens of an embedding, or a slab that the vendor multiplies with.

Owns nothing. Called by `executor.cuda` and `long_products`. The specification is `Weight.rows`, to the bit: a scale in
fp16 times a step is exact in fp32, so no order of roundings can differ.
Invariant: each stored byte is read once, each number written once.
Letters: R rows, K inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.dequantize import KINDS, low_half, nibble, signed
from headrace.ops.cuda.launching import attempt, early, start, take_turn
from headrace.ops.cuda.sizes import cdiv
from headrace.ops.cuda.weights import CHUNK_INPUTS, FORM_NUMBERS, Weight

_BLOCK_K = 1024
_SLAB_BLOCK_R, _SLAB_CHUNK_ROWS = 4, 16
_PLAIN_ROWS = 2048  # at a time: torch's ops need their room several times over


@triton.jit(do_not_specialize=["first", "num_rows"])
def _decode_rows(
    values, scales, index, out, first, num_rows, n, k, num_chunks, factor,
    FORM: tl.constexpr, GROUP: tl.constexpr, SCALE_KIND: tl.constexpr, INDEXED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    take_turn(IS_EARLY)
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    at = tl.program_id(1) * BLOCK_K
    is_row = rows < num_rows
    taken = rows + first
    if INDEXED:
        taken = tl.load(index + rows, mask=is_row, other=0).to(tl.int64)
    if FORM == 1 or FORM == 2:  # chunks of 64 bytes
        each: tl.constexpr = 64 * FORM
        j = tl.arange(0, 32)
        for c in tl.static_range(BLOCK_K // each):
            chunk = at // each + c
            held = tl.minimum(chunk, num_chunks - 1)  # past the end nothing is stored
            place = taken + tl.cast(n, tl.int64) * held
            words = tl.load(values + place[:, None] * 32 + j[None, :], mask=is_row[:, None], other=0)
            for part in tl.static_range(2 * FORM):
                if FORM == 2:
                    group = taken + tl.cast(n, tl.int64) * (held * (128 // GROUP) + part * 32 // GROUP)
                    pair = tl.load(scales + group, mask=is_row, other=0)
                    w = nibble(words, part, pair, SCALE_KIND, tl.float32)
                else:
                    w = signed(words, tl.float32)[part]
                    if GROUP > 0:
                        pair = tl.load(scales + place, mask=is_row, other=0) >> (16 * part)
                        w = w * low_half(pair, SCALE_KIND).to(tl.float32)[:, None]
                    else:
                        w = w * tl.load(scales + taken, mask=is_row, other=0.0)[:, None]
                i = chunk * each + part * 32 + j
                spots = out + rows[:, None] * k + i[None, :]
                tl.store(spots, (w * factor).to(out.dtype.element_ty), mask=is_row[:, None] & (i < k)[None, :])
    else:
        i = at + tl.arange(0, BLOCK_K)
        mask = is_row[:, None] & (i < k)[None, :]
        w = tl.load(values + taken[:, None] * k + i[None, :], mask=mask, other=0.0).to(tl.float32)
        if FORM == 3:
            w = w * tl.load(scales + taken, mask=is_row, other=0.0)[:, None]
        tl.store(out + rows[:, None] * k + i[None, :], (w * factor).to(out.dtype.element_ty), mask=mask)


def gather_rows(weight: Weight, index: torch.Tensor, out: torch.Tensor, *, scale: float = 1.0) -> None:
    """Write the rows named by `index` [R] int32, times `scale`, to `out` [R, K] contiguous."""
    if not attempt(f"rows_{weight.form}", out, lambda: _launch(weight, out, index=index, factor=scale)):
        out.copy_(weight.rows(index.long()) * scale)


def decode_slab(weight: Weight, first: int, out: torch.Tensor) -> None:
    """Write the rows from `first` on to `out` [R, K] contiguous."""
    if attempt(f"rows_{weight.form}", out, lambda: _launch(weight, out, first=first)):
        return
    for at in range(0, len(out), _PLAIN_ROWS):
        few = out[at : at + _PLAIN_ROWS]
        few.copy_(weight.rows(slice(first + at, first + at + len(few))))


def _launch(
    weight: Weight, out: torch.Tensor, *, first: int = 0, index: torch.Tensor | None = None, factor: float = 1.0
) -> None:
    is_chunked = weight.form in CHUNK_INPUTS
    block_r = 1 if index is not None else _SLAB_CHUNK_ROWS if is_chunked else _SLAB_BLOCK_R
    block_k = 256 if is_chunked and index is None else _BLOCK_K
    scales, kind = weight.scale_words()
    start(
        _decode_rows, (cdiv(len(out), block_r), cdiv(weight.k, block_k)),
        weight.values, scales, weight.values if index is None else index, out, first, len(out), weight.n, weight.k,
        len(weight.values), factor,
        FORM=FORM_NUMBERS[weight.form], GROUP=weight.group, SCALE_KIND=KINDS[kind], INDEXED=index is not None,
        BLOCK_R=block_r, BLOCK_K=block_k, **early(),
    )  # fmt: skip
