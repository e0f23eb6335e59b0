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

from headrace.ops.cuda.launching import attempt, early, take_turn


class Following(NamedTuple):
    """The norm that reads a sum next, done in the same pass: its weight [N] fp32, where it writes [T, N], its eps."""

    weight: torch.Tensor
    dst: torch.Tensor
    eps: float


@triton.jit
def _rms_norm(
    src, weight, bias, dst, next_weight, next_dst, n, eps, next_eps,
    NORM: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr, NEXT: tl.constexpr, BLOCK: tl.constexpr,
    IS_EARLY: tl.constexpr,
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
        y += tl.load(dst + token * n + cols, mask=inside, other=0.0)
        tl.store(dst + token * n + cols, y, mask=inside)
    else:
        tl.store(dst + token * n + cols, y.to(dst.dtype.element_ty), mask=inside)
    if NEXT:
        w = tl.load(next_weight + cols, mask=inside, other=0.0)
        y = y / tl.sqrt(tl.sum(y * y, axis=0) / n + next_eps) * w
        tl.store(next_dst + token * n + cols, y.to(next_dst.dtype.element_ty), mask=inside)


def rms_norm(src: torch.Tensor, weight: torch.Tensor, dst: torch.Tensor, *, eps: float) -> None:
    """Write rms_norm(src) * weight to `dst`. src, dst [T, N], weight [N] fp32."""
    if not attempt("rms_norm", src, lambda: _launch(src, dst, weight=weight, eps=eps)):
        dst.copy_(_plain(src, weight, eps))


def rms_norm_add(
    src: torch.Tensor, weight: torch.Tensor, dst: torch.Tensor, *, eps: float, following: Following | None = None
) -> None:
    """Add rms_norm(src) * weight to `dst`, fp32 [T, N]."""
    if attempt("rms_norm", src, lambda: _launch(src, dst, weight=weight, eps=eps, is_added=True, following=following)):
        return
    dst += _plain(src, weight, eps)
    if following is not None:
        following.dst.copy_(_plain(dst, following.weight, following.eps))


def add_rms_norm(src: torch.Tensor, bias: torch.Tensor | None, dst: torch.Tensor, following: Following) -> None:
    """Add src + bias to `dst`, fp32 [T, N], and norm the sum."""
    if attempt("rms_norm", src, lambda: _launch(src, dst, bias=bias, is_added=True, following=following)):
        return
    dst += src if bias is None else src.float() + bias
    following.dst.copy_(_plain(dst, following.weight, following.eps))


def _plain(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps) * weight


def _launch(
    src: torch.Tensor,
    dst: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    eps: float = 0.0,
    bias: torch.Tensor | None = None,
    is_added: bool = False,
    following: Following | None = None,
) -> None:
    tokens, n = src.shape
    block = triton.next_power_of_2(n)
    next_weight, next_dst, next_eps = (dst, dst, 0.0) if following is None else following
    _rms_norm[(tokens,)](
        src, dst if weight is None else weight, dst if bias is None else bias, dst, next_weight, next_dst,
        n, eps, next_eps,
        NORM=weight is not None, HAS_BIAS=bias is not None, ADD=is_added, NEXT=following is not None, BLOCK=block,
        **early(), num_warps=max(min(block // 512, 16), 1),
    )  # fmt: skip
