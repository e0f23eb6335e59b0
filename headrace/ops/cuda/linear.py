"""Products of a few tokens with a weight in any form, decoded in registers; long batches go to `long_products`.

Owns nothing. Called by `executor.cuda`. The specification is `ops.reference.linear` on the decoded weight.
A program makes BLOCK_N outputs of BLOCK_M tokens over one part of the inputs. With more than one part, sums go to fp32
scratch and a second kernel adds them up, first to last; the number of parts depends on the weight alone.
Invariant: with `is_invariant` a token's result has the same bits in any batch: one tile shape for any number of tokens,
each row of a tile summed alike.
Letters: T tokens, K inputs, N outputs, F = N / 2 for gated layers: gate rows first, then up rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.attention_kernel import dot
from headrace.ops.cuda.epilogue import ACTIVATIONS, EPILOGUES, Epilogue, activate
from headrace.ops.cuda.launching import attempt, early, take_turn
from headrace.ops.cuda.long_products import long_linear
from headrace.ops.cuda.weights import Weight

SKINNY_TOKENS = 64  # up to here reading the weight is what costs, beyond it the multiplying
_INVARIANT_TILE = 64
_WANTED_PROGRAMS = 264  # two per multiprocessor of an H200: fewer cannot keep the memory busy

_FORMS = {"dense": 0, "int8": 1, "int4": 2, "fp8": 3}


@triton.jit
def _multiply_part(
    acc, x, values, scales, lows, tokens, rows, is_token, is_row, begin, end, k, value_width, num_groups,
    FORM: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Add x[tokens, begin:end] · w[rows, begin:end] to `acc`; scales per output are left out."""
    wide = rows.to(tl.int64)
    for at in range(begin, end, BLOCK_K):
        if FORM == 2:
            # The bytes of some chunks: first their low halves, then their high halves.
            chunks: tl.constexpr = BLOCK_K // 64
            half: tl.constexpr = BLOCK_K // 2
            b = tl.arange(0, half)
            inputs = at + b // 32 * 64 + b % 32
            packed = tl.load(
                values + wide[:, None] * value_width + (at // 2 + b)[None, :],
                mask=is_row[:, None] & (at // 2 + b < value_width)[None, :], other=0,
            ).to(tl.int32)  # fmt: skip
            c = tl.arange(0, chunks)
            for side in tl.static_range(2):
                group = (at + c * 64 + side * 32) // GROUP
                is_group = is_row[:, None] & (group < num_groups)[None, :]
                scale = tl.load(scales + wide[:, None] * num_groups + group[None, :], mask=is_group, other=0.0)
                low = tl.load(lows + wide[:, None] * num_groups + group[None, :], mask=is_group, other=0.0)
                nibble = ((packed >> (4 * side)) & 15).to(tl.float32)
                w = tl.reshape(nibble, (BLOCK_N, chunks, 32)) * scale.to(tl.float32)[:, :, None]
                w = tl.reshape(w + low.to(tl.float32)[:, :, None], (BLOCK_N, half))
                i = inputs + side * 32
                mask = is_token[:, None] & (i < k)[None, :]
                a = tl.load(x + tokens[:, None] * k + i[None, :], mask=mask, other=0.0)
                acc += dot(a, tl.trans(w.to(a.dtype)))
        else:
            i = at + tl.arange(0, BLOCK_K)
            a = tl.load(x + tokens[:, None] * k + i[None, :], mask=is_token[:, None] & (i < k)[None, :], other=0.0)
            w = tl.load(values + wide[:, None] * k + i[None, :], mask=is_row[:, None] & (i < k)[None, :], other=0.0)
            if FORM == 1:
                w = w.to(tl.float32)
                if GROUP > 0:
                    groups: tl.constexpr = BLOCK_K // GROUP
                    group = at // GROUP + tl.arange(0, groups)
                    is_group = is_row[:, None] & (group < num_groups)[None, :]
                    scale = tl.load(scales + wide[:, None] * num_groups + group[None, :], mask=is_group, other=0.0)
                    w = tl.reshape(w, (BLOCK_N, groups, GROUP)) * scale.to(tl.float32)[:, :, None]
                    w = tl.reshape(w, (BLOCK_N, BLOCK_K))
            if FORM == 3:
                w = w.to(tl.float32)
            acc += dot(a, tl.trans(w.to(a.dtype)))
    return acc


@triton.jit
def _finish(
    acc, gate_or_none, out, bias, tokens, cols, mask, width, head_scale, softcap,
    EPILOGUE: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    F: tl.constexpr,
):  # fmt: skip
    """Add the bias, apply the epilogue, store. With `glu`, `acc` is up and `gate_or_none` the gate."""
    is_col = cols < width
    if HAS_BIAS:
        acc += tl.load(bias + F + cols, mask=is_col, other=0.0)[None, :]
        if EPILOGUE == 2:
            gate_or_none += tl.load(bias + cols, mask=is_col, other=0.0)[None, :]
    if EPILOGUE == 2:
        acc = activate(gate_or_none, ACTIVATION) * acc
    acc = acc * head_scale
    if HAS_SOFTCAP:
        acc = softcap * (1.0 - 2.0 / (tl.exp(2.0 * acc / softcap) + 1.0))
    spots = out + tokens[:, None] * width + cols[None, :]
    if EPILOGUE == 1:
        acc += tl.load(spots, mask=mask, other=0.0).to(tl.float32)
    tl.store(spots, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])
def _linear(
    x, values, scales, lows, bias, out, partial, num_tokens, n, k, part_length, value_width, num_groups,
    head_scale, softcap,
    FORM: tl.constexpr, GROUP: tl.constexpr, HAS_BIAS: tl.constexpr, EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_SOFTCAP: tl.constexpr, F: tl.constexpr, NUM_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    take_turn(IS_EARLY)
    width = n
    if EPILOGUE == 2:
        width = F
    tokens = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    is_token = tokens < num_tokens
    is_col = cols < width
    begin = part * part_length
    end = tl.minimum(begin + part_length, k)
    up_from: tl.constexpr = F if EPILOGUE == 2 else 0
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc = _multiply_part(
        acc, x, values, scales, lows, tokens, cols + up_from, is_token, is_col, begin, end, k, value_width, num_groups,
        FORM, GROUP, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    gate = acc
    if EPILOGUE == 2:
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        gate = _multiply_part(
            gate, x, values, scales, lows, tokens, cols, is_token, is_col, begin, end, k, value_width, num_groups,
            FORM, GROUP, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    if FORM % 2 == 1 and GROUP == 0:
        acc = acc * tl.load(scales + up_from + cols, mask=is_col, other=0.0)[None, :]
        if EPILOGUE == 2:
            gate = gate * tl.load(scales + cols, mask=is_col, other=0.0)[None, :]
    mask = is_token[:, None] & is_col[None, :]
    if NUM_PARTS == 1:
        _finish(
            acc, gate, out, bias, tokens, cols, mask, width, head_scale, softcap,
            EPILOGUE, ACTIVATION, HAS_BIAS, HAS_SOFTCAP, up_from,
        )  # fmt: skip
    else:
        line = (part * num_tokens + tokens) * n
        tl.store(partial + line[:, None] + (up_from + cols)[None, :], acc, mask=mask)
        if EPILOGUE == 2:
            tl.store(partial + line[:, None] + cols[None, :], gate, mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])
def _add_parts(
    partial, bias, out, num_tokens, n, head_scale, softcap,
    HAS_BIAS: tl.constexpr, EPILOGUE: tl.constexpr, ACTIVATION: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    F: tl.constexpr, NUM_PARTS: tl.constexpr, BLOCK_N: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    take_turn(IS_EARLY)
    width = n
    if EPILOGUE == 2:
        width = F
    up_from: tl.constexpr = F if EPILOGUE == 2 else 0
    tokens = tl.program_id(1).to(tl.int64) + tl.arange(0, 1)
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (cols < width)[None, :]
    acc = tl.zeros((1, BLOCK_N), tl.float32)
    gate = tl.zeros((1, BLOCK_N), tl.float32)
    for part in range(NUM_PARTS):
        line = (part * num_tokens + tokens) * n
        acc += tl.load(partial + line[:, None] + (up_from + cols)[None, :], mask=mask, other=0.0)
        if EPILOGUE == 2:
            gate += tl.load(partial + line[:, None] + cols[None, :], mask=mask, other=0.0)
    _finish(
        acc, gate, out, bias, tokens, cols, mask, width, head_scale, softcap,
        EPILOGUE, ACTIVATION, HAS_BIAS, HAS_SOFTCAP, up_from,
    )  # fmt: skip


def linear(
    x: torch.Tensor,
    weight: Weight,
    out: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    epilogue: Epilogue,
    is_invariant: bool = False,
) -> None:
    """Write epilogue(x @ weight.T + bias) to `out`.

    x    [T, K] contiguous
    out  [T, N], [T, N/2] with `glu`; with `add` it is added to
    """
    name = f"linear_{weight.form}"
    if is_skinny(len(x), is_invariant=is_invariant):
        launch = _launcher(x, weight, out, bias, epilogue, is_invariant=is_invariant)
        if attempt(name, x, launch):
            return
    long_linear(x, weight, out, bias, epilogue)


def is_skinny(num_tokens: int, *, is_invariant: bool) -> bool:
    """Say whether this kernel serves so many tokens; others go to `long_products`."""
    return is_invariant or num_tokens <= SKINNY_TOKENS


def _launcher(
    x: torch.Tensor,
    weight: Weight,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    epilogue: Epilogue,
    *,
    is_invariant: bool,
) -> Callable[[], None]:
    """Return what launches the kernel: so that a failed one costs nothing but this closure."""

    def launch() -> None:
        n, k, tokens = weight.n, weight.k, len(x)
        width = n // 2 if epilogue.kind == "glu" else n
        group = 0 if weight.group in (0, k) and weight.form != "int4" else weight.group
        block_m = _INVARIANT_TILE if is_invariant else 16 if tokens <= 16 else 32 if tokens <= 32 else 64
        block_n = 32 if width <= 32 * _WANTED_PROGRAMS else 64
        block_k = 128 if x.element_size() < 4 else 64
        if group:
            block_k = max(block_k, group)
        parts = _num_parts(width, block_n, k, block_k)
        part_length = triton.cdiv(triton.cdiv(k, parts), block_k) * block_k
        parts = triton.cdiv(k, part_length)
        partial = out
        if parts > 1:
            partial = torch.empty((parts, tokens, n), dtype=torch.float32, device=x.device)
        scales, lows = (x if tensor is None else tensor for tensor in (weight.scales, weight.lows))
        shared = {
            "HAS_BIAS": bias is not None,
            "EPILOGUE": EPILOGUES[epilogue.kind],
            "ACTIVATION": ACTIVATIONS[epilogue.activation],
            "HAS_SOFTCAP": epilogue.softcap is not None,
            "F": n // 2 if epilogue.kind == "glu" else 0,
            "NUM_PARTS": parts,
            **early(),
        }
        given = x if bias is None else bias
        _linear[(triton.cdiv(width, block_n), triton.cdiv(tokens, block_m), parts)](
            x, weight.values, scales, lows, given, out, partial, tokens, n, k, part_length,
            weight.values.shape[1], 1 if weight.scales is None else weight.scales.shape[1],
            epilogue.scale, epilogue.softcap or 1.0,
            FORM=_FORMS[weight.form], GROUP=group, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
            num_warps=4, num_stages=4 if block_m <= 32 else 3, **shared,
        )  # fmt: skip
        if parts > 1:
            _add_parts[(triton.cdiv(width, 256), tokens)](
                partial, given, out, tokens, n, epilogue.scale, epilogue.softcap or 1.0,
                BLOCK_N=256, num_warps=2, **shared,
            )  # fmt: skip

    return launch


def _num_parts(width: int, block_n: int, k: int, block_k: int) -> int:
    """Return into how many parts the inputs are cut: enough programs to keep the memory busy, no more."""
    programs = triton.cdiv(width, block_n)
    return int(min(max(_WANTED_PROGRAMS // programs, 1), max(k // (2 * block_k), 1), 8))
