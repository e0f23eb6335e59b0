"""What follows the vendor's product of many tokens, in one pass over it: bias, activation, scale, cap, sum.

Owns nothing. Called by `long_products`. The specification is `ops.reference`: `linear`, `glu` and `head`.
Invariant: each number of the product is read once, each of the result written once.
Letters: T tokens, N outputs of the product, F = N / 2 for gated layers: gate columns first, then up columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.e4m3 import MOST_NUMBERS, Rounded, round_plain, store_token, warps_for
from headrace.ops.cuda.epilogue import ACTIVATIONS, EPILOGUES, Epilogue, activate, activated
from headrace.ops.cuda.launching import attempt, early, pieces, start, take_turn
from headrace.ops.cuda.sizes import cdiv, power_of_2

_BLOCK = 1024
_REGISTERS = 64  # of a thread: two programs of 16 warps then share a multiprocessor, and one loads while one computes


@triton.jit
def _finish_product(
    product, bias, out, scales, width, head_scale, softcap,
    EPILOGUE: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    ROUNDED: tl.constexpr, BLOCK: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    take_turn(IS_EARLY)
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width
    line = product + token * width
    if EPILOGUE == 2:
        line += token * width + width  # up lies behind the gate
    y = tl.load(line + cols, mask=mask, other=0.0).to(tl.float32)
    if EPILOGUE == 2:
        gate = tl.load(line - width + cols, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            y += tl.load(bias + width + cols, mask=mask, other=0.0)
            gate += tl.load(bias + cols, mask=mask, other=0.0)
        y = activate(gate, ACTIVATION) * y
    elif HAS_BIAS:
        y += tl.load(bias + cols, mask=mask, other=0.0)
    y = y * head_scale
    if HAS_SOFTCAP:
        y = softcap * (1.0 - 2.0 / (tl.exp(2.0 * y / softcap) + 1.0))
    if EPILOGUE == 1:
        y += tl.load(out + token * width + cols, mask=mask, other=0.0)
    store_token(y, out, scales, token, cols, mask, width, ROUNDED)


def finish(product: torch.Tensor, out: torch.Tensor | Rounded, bias: torch.Tensor | None, epilogue: Epilogue) -> None:
    """Apply an epilogue to a product [T, N] without its bias, both contiguous; writes or adds to `out`.

    Where that is to be rounded, a program has a whole token: at most MOST_NUMBERS of them.
    """
    dst, scales = out if isinstance(out, Rounded) else (out, None)
    width = dst.shape[1]

    def launch() -> None:
        block, shape = _BLOCK, {"num_warps": 4}
        if scales is not None:
            block = power_of_2(width)
            shape = {"num_warps": warps_for(block), "maxnreg": _REGISTERS}
        start(
            _finish_product, (len(dst), cdiv(width, block)),
            product, product if bias is None else bias, dst, dst if scales is None else scales, width,
            epilogue.scale, epilogue.softcap or 1.0,
            EPILOGUE=EPILOGUES[epilogue.kind], ACTIVATION=ACTIVATIONS[epilogue.activation],
            HAS_BIAS=bias is not None, HAS_SOFTCAP=epilogue.softcap is not None, ROUNDED=scales is not None,
            BLOCK=block, **early(), **shape,
        )  # fmt: skip

    fits = scales is None or width <= MOST_NUMBERS
    if not fits or not attempt("finish" if scales is None else "finish_e4m3", product, launch):
        _plain(product, out, bias, epilogue)


def _plain(product: torch.Tensor, out: torch.Tensor | Rounded, bias: torch.Tensor | None, epilogue: Epilogue) -> None:
    for some in pieces(len(product)):
        y = product[some].float()
        if bias is not None:
            y = y + bias
        if epilogue.kind == "glu":
            gate, up = y.chunk(2, -1)
            y = activated(gate, epilogue.activation) * up
        y = y * epilogue.scale
        if epilogue.softcap is not None:
            y = epilogue.softcap * torch.tanh(y / epilogue.softcap)
        if isinstance(out, Rounded):
            round_plain(y, out.some(some))
        elif epilogue.kind == "add":
            out[some] += y
        else:
            out[some] = y
