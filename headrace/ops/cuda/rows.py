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

from headrace.ops.cuda.launching import attempt, early, take_turn
from headrace.ops.cuda.weights import FORM_NUMBERS, Weight

_BLOCK_K = 1024
_SLAB_BLOCK_R = 4
_PLAIN_ROWS = 2048  # at a time: torch's ops need their room several times over


@triton.jit(do_not_specialize=["first", "num_rows"])
def _decode_rows(
    values, scales, lows, index, out, first, num_rows, k, value_width, num_groups, factor,
    FORM: tl.constexpr, GROUP: tl.constexpr, INDEXED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    take_turn(IS_EARLY)
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    at = tl.program_id(1) * BLOCK_K
    is_row = rows < num_rows
    taken = tl.load(index + rows, mask=is_row, other=0).to(tl.int64) if INDEXED else rows + first
    if FORM == 2:
        # The bytes of some chunks: first their low halves, then their high halves.
        chunks: tl.constexpr = BLOCK_K // 64
        half: tl.constexpr = BLOCK_K // 2
        b = tl.arange(0, half)
        c = tl.arange(0, chunks)
        packed = tl.load(
            values + taken[:, None] * value_width + (at // 2 + b)[None, :],
            mask=is_row[:, None] & (at // 2 + b < value_width)[None, :], other=0,
        ).to(tl.int32)  # fmt: skip
        for side in tl.static_range(2):
            group = (at + c * 64 + side * 32) // GROUP
            is_group = is_row[:, None] & (group < num_groups)[None, :]
            scale = tl.load(scales + taken[:, None] * num_groups + group[None, :], mask=is_group, other=0.0)
            low = tl.load(lows + taken[:, None] * num_groups + group[None, :], mask=is_group, other=0.0)
            nibble = ((packed >> (4 * side)) & 15).to(tl.float32)
            w = tl.reshape(nibble, (BLOCK_R, chunks, 32)) * scale.to(tl.float32)[:, :, None]
            w = tl.reshape(w + low.to(tl.float32)[:, :, None], (BLOCK_R, half)) * factor
            i = at + b // 32 * 64 + b % 32 + side * 32
            spots = out + rows[:, None] * k + i[None, :]
            tl.store(spots, w.to(out.dtype.element_ty), mask=is_row[:, None] & (i < k)[None, :])
    else:
        i = at + tl.arange(0, BLOCK_K)
        mask = is_row[:, None] & (i < k)[None, :]
        w = tl.load(values + taken[:, None] * k + i[None, :], mask=mask, other=0.0).to(tl.float32)
        if FORM > 0:
            if GROUP > 0:
                groups: tl.constexpr = BLOCK_K // GROUP
                group = at // GROUP + tl.arange(0, groups)
                is_group = is_row[:, None] & (group < num_groups)[None, :]
                scale = tl.load(scales + taken[:, None] * num_groups + group[None, :], mask=is_group, other=0.0)
                w = tl.reshape(w, (BLOCK_R, groups, GROUP)) * scale.to(tl.float32)[:, :, None]
                w = tl.reshape(w, (BLOCK_R, BLOCK_K))
            else:
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
    scales, lows = (weight.values if tensor is None else tensor for tensor in (weight.scales, weight.lows))
    block_r = _SLAB_BLOCK_R if index is None else 1
    group = 0 if weight.group in (0, weight.k) and weight.form != "int4" else weight.group
    _decode_rows[(triton.cdiv(len(out), block_r), triton.cdiv(weight.k, _BLOCK_K))](
        weight.values, scales, lows, weight.values if index is None else index, out, first, len(out), weight.k,
        weight.values.shape[1], 1 if weight.scales is None else weight.scales.shape[1], factor,
        FORM=FORM_NUMBERS[weight.form], GROUP=group, INDEXED=index is not None, BLOCK_R=block_r, BLOCK_K=_BLOCK_K,
        **early(),
    )  # fmt: skip
