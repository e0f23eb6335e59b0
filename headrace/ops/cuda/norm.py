"""RMS norm of packed tokens, alone or with the residual sum around it: one read of each token, one write.

Owns nothing. Called by `executor.cuda`. The specification is `ops.reference.rms_norm`.
Invariant: a token's result depends on that token and on the width alone.
Letters: T tokens, N channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.launching import attempt, early, take_turn


@triton.jit
def _rms_norm(
    src, weight, dst, next_weight, next_dst, n, eps, next_eps,
    ADD: tl.constexpr, NEXT: tl.constexpr, BLOCK: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    take_turn(IS_EARLY)
    token = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < n
    x = tl.load(src + token * n + cols, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + cols, mask=inside, other=0.0)
    y = x / tl.sqrt(tl.sum(x * x, axis=0) / n + eps) * w
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
    if not attempt("rms_norm", src, lambda: _launch(src, weight, dst, eps, is_added=False, following=None)):
        dst.copy_(_plain(src, weight, eps))


def rms_norm_add(
    src: torch.Tensor,
    weight: torch.Tensor,
    dst: torch.Tensor,
    *,
    eps: float,
    following: tuple[torch.Tensor, torch.Tensor, float] | None = None,
) -> None:
    """Add rms_norm(src) * weight to `dst`, fp32 [T, N].

    following  (weight, dst, eps) of the norm that reads the sum next, done in the same pass
    """
    if attempt("rms_norm", src, lambda: _launch(src, weight, dst, eps, is_added=True, following=following)):
        return
    dst += _plain(src, weight, eps)
    if following is not None:
        following[1].copy_(_plain(dst, following[0], following[2]))


def _plain(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps) * weight


def _launch(
    src: torch.Tensor,
    weight: torch.Tensor,
    dst: torch.Tensor,
    eps: float,
    *,
    is_added: bool,
    following: tuple[torch.Tensor, torch.Tensor, float] | None,
) -> None:
    tokens, n = src.shape
    block = triton.next_power_of_2(n)
    next_weight, next_dst, next_eps = following if following is not None else (weight, dst, eps)
    _rms_norm[(tokens,)](
        src, weight, dst, next_weight, next_dst, n, eps, next_eps,
        ADD=is_added, NEXT=following is not None, BLOCK=block, **early(),
        num_warps=max(min(block // 512, 16), 1),
    )  # fmt: skip
