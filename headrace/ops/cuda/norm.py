"""RMS norm of packed tokens, alone or with the residual sum before or behind it: one read of each token, one write.

Owns nothing. Called by `executor.cuda`. The specification is `ops.reference.rms_norm`.
Invariant: a token's result depends on that token and on the width alone.
Letters: T tokens, N channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.e4m3 import Rounded, round_plain, store_token, warps_for
from headrace.ops.cuda.launching import attempt, early, pieces, start, take_turn
from headrace.ops.cuda.sizes import power_of_2


class Following(NamedTuple):
    """The norm that reads a sum next, done in the same pass: its weight [N] fp32, where it writes [T, N], its eps."""

    weight: torch.Tensor
    dst: torch.Tensor | Rounded
    eps: float


@triton.jit
def _rms_norm(
    src, weight, bias, total, next_weight, dst, scales, n, eps, next_eps,
    NORM: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr, NEXT: tl.constexpr, ROUNDED: tl.constexpr,
    BLOCK: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    take_turn(IS_EARLY)
    token = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < n
    y = tl.load(src + token * n + cols, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        w = tl.load(weight + cols, mask=inside, other=0.0)
        y = y / tl.sqrt(tl.sum(y * y, axis=0) / n + eps) * w
    if HAS_BIAS:
        y += tl.load(bias + cols, mask=inside, other=0.0)
    if ADD:
        y += tl.load(total + token * n + cols, mask=inside, other=0.0)
        tl.store(total + token * n + cols, y, mask=inside)
    if NEXT:
        w = tl.load(next_weight + cols, mask=inside, other=0.0)
        y = y / tl.sqrt(tl.sum(y * y, axis=0) / n + next_eps) * w
    if NEXT or not ADD:
        store_token(y, dst, scales, token, cols, inside, n, ROUNDED)


def rms_norm(src: torch.Tensor, weight: torch.Tensor, dst: torch.Tensor | Rounded, *, eps: float) -> None:
    """Write rms_norm(src) * weight to `dst`. src, dst [T, N], weight [N] fp32."""
    if not attempt("rms_norm", src, lambda: _launch(src, None, dst, weight=weight, eps=eps)):
        _norm_plain(src, weight, eps, dst)


def rms_norm_add(
    src: torch.Tensor, weight: torch.Tensor, total: torch.Tensor, *, eps: float, following: Following | None = None
) -> None:
    """Add rms_norm(src) * weight to `total`, fp32 [T, N]."""

    def launch() -> None:
        _launch(src, total, None if following is None else following.dst, weight=weight, eps=eps, following=following)

    if attempt("rms_norm", src, launch):
        return
    for some in pieces(len(src)):
        total[some] += _normed(src[some], weight, eps)
    if following is not None:
        _norm_plain(total, following.weight, following.eps, following.dst)


def add_rms_norm(src: torch.Tensor, bias: torch.Tensor | None, total: torch.Tensor, following: Following) -> None:
    """Add src + bias to `total`, fp32 [T, N], and norm the sum."""
    if attempt("rms_norm", src, lambda: _launch(src, total, following.dst, bias=bias, following=following)):
        return
    for some in pieces(len(src)):
        total[some] += src[some] if bias is None else src[some].float() + bias
    _norm_plain(total, following.weight, following.eps, following.dst)


def _norm_plain(src: torch.Tensor, weight: torch.Tensor, eps: float, dst: torch.Tensor | Rounded) -> None:
    for some in pieces(len(src)):
        y = _normed(src[some], weight, eps)
        if isinstance(dst, Rounded):
            round_plain(y, dst.some(some))
        else:
            dst[some] = y


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps) * weight


def _launch(
    src: torch.Tensor,
    total: torch.Tensor | None,
    dst: torch.Tensor | Rounded | None,
    *,
    weight: torch.Tensor | None = None,
    eps: float = 0.0,
    bias: torch.Tensor | None = None,
    following: Following | None = None,
) -> None:
    tokens, n = src.shape
    block = power_of_2(n)
    out, scales = dst if isinstance(dst, Rounded) else (dst, None)
    tensors = (weight, bias, total, None if following is None else following.weight, out, scales)
    start(
        _rms_norm, (tokens,),
        src, *(src if tensor is None else tensor for tensor in tensors), n, eps,
        0.0 if following is None else following.eps,
        NORM=weight is not None, HAS_BIAS=bias is not None, ADD=total is not None, NEXT=following is not None,
        ROUNDED=scales is not None, BLOCK=block, **early(), num_warps=warps_for(block),
    )  # fmt: skip
