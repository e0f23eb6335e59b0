"""Between the QKV product and attention, in one kernel: norm and rotate q and k, write k and v into the paged cache.

Owns nothing; writes the cache slots it is given. Called by `executor.cuda`. Specification: `ops.reference.qk_write`.
Invariant: a token's result depends on that token alone. Padded tokens write to a slot that nobody reads.
A layer's cache is a view [blocks, 2, Nkv, S, D] of the pool, K at index 0; blocks may lie apart.
Letters: T tokens, Nq/Nkv query/kv heads, D head size, S block size, R rotated channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.launching import attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """How q and k are normed and rotated. inv_freq [R/2] fp32; norms [D] fp32; None: not at all."""

    inv_freq: torch.Tensor | None
    scale: float
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    eps: float


@triton.jit
def _qk_write(
    qkv, q_out, cache, slots, positions, inv_freq, q_norm, k_norm, rope_scale, eps, stride_block, stride_kv, block_size,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HAS_ROPE: tl.constexpr,
    HAS_Q_NORM: tl.constexpr, HAS_K_NORM: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    inside = (head < Q_HEADS + 2 * KV_HEADS) & (cols < D)
    source = qkv + token * ((Q_HEADS + 2 * KV_HEADS) * D) + head * D
    y = tl.load(source + cols, mask=inside, other=0.0).to(tl.float32)
    is_q = head < Q_HEADS
    is_k = (head >= Q_HEADS) & (head < Q_HEADS + KV_HEADS)
    is_low = cols < HALF
    partner = tl.where(is_low, cols + HALF, cols - HALF)
    is_turned = inside & (cols < 2 * HALF) & (head < Q_HEADS + KV_HEADS)
    other = y
    if HAS_ROPE:
        other = tl.load(source + partner, mask=is_turned, other=0.0).to(tl.float32)
    if HAS_Q_NORM or HAS_K_NORM:
        inverse = 1.0 / tl.sqrt(tl.sum(y * y, axis=1) / D + eps)
        inverse = inverse[:, None]
        if HAS_Q_NORM:
            y = tl.where(is_q, y * inverse * tl.load(q_norm + cols, mask=cols < D, other=0.0), y)
            if HAS_ROPE:
                weight = tl.load(q_norm + partner, mask=cols < 2 * HALF, other=0.0)
                other = tl.where(is_q, other * inverse * weight, other)
        if HAS_K_NORM:
            y = tl.where(is_k, y * inverse * tl.load(k_norm + cols, mask=cols < D, other=0.0), y)
            if HAS_ROPE:
                weight = tl.load(k_norm + partner, mask=cols < 2 * HALF, other=0.0)
                other = tl.where(is_k, other * inverse * weight, other)
    if HAS_ROPE:
        freq = tl.load(inv_freq + tl.where(is_low, cols, cols - HALF), mask=cols < 2 * HALF, other=0.0)
        angle = tl.load(positions + token).to(tl.float32) * freq
        cos, sin = tl.cos(angle) * rope_scale, tl.sin(angle) * rope_scale
        y = tl.where(is_turned, tl.where(is_low, y * cos - other * sin, y * cos + other * sin), y)
    tl.store(q_out + (token * Q_HEADS + head) * D + cols, y.to(q_out.dtype.element_ty), mask=inside & is_q)
    slot = tl.load(slots + token).to(tl.int64)
    is_v = head >= Q_HEADS + KV_HEADS
    kv_head = tl.where(is_v, head - Q_HEADS - KV_HEADS, head - Q_HEADS).to(tl.int64)
    place = (slot // block_size) * stride_block + tl.where(is_v, stride_kv, 0)
    place += (kv_head * block_size + slot % block_size) * D
    tl.store(cache + place + cols, y.to(cache.dtype.element_ty), mask=inside & (head >= Q_HEADS))


def qk_write(
    qkv: torch.Tensor,
    q_out: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    rotation: Rotation,
) -> None:
    """Write the queries to `q_out` [T, Nq·D] and k and v to their slots.

    qkv    [T, (Nq + 2·Nkv)·D]         q heads, then k heads, then v heads
    cache  [blocks, 2, Nkv, S, D]      written at slots = block * S + offset
    slots, positions  [T] int32
    """
    if not attempt("qk_write", qkv, lambda: _launch(qkv, q_out, cache, slots, positions, rotation)):
        _plain(qkv, q_out, cache, slots, positions, rotation)


def _launch(
    qkv: torch.Tensor,
    q_out: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    rotation: Rotation,
) -> None:
    _, _, kv_heads, block_size, d = cache.shape
    q_heads = q_out.shape[1] // d
    inv_freq, q_norm, k_norm = rotation.inv_freq, rotation.q_norm, rotation.k_norm
    heads = min(triton.next_power_of_2(q_heads + 2 * kv_heads), 16)
    _qk_write[(len(qkv), triton.cdiv(q_heads + 2 * kv_heads, heads))](
        qkv, q_out, cache, slots, positions,
        qkv if inv_freq is None else inv_freq,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        rotation.scale, rotation.eps, cache.stride(0), cache.stride(1), block_size,
        Q_HEADS=q_heads, KV_HEADS=kv_heads, D=d, HALF=0 if inv_freq is None else len(inv_freq),
        HAS_ROPE=inv_freq is not None, HAS_Q_NORM=q_norm is not None, HAS_K_NORM=k_norm is not None,
        HEADS=heads, BLOCK=triton.next_power_of_2(d), num_warps=4,
    )  # fmt: skip


def _plain(
    qkv: torch.Tensor,
    q_out: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    rotation: Rotation,
) -> None:
    _, _, kv_heads, block_size, d = cache.shape
    q_heads = q_out.shape[1] // d
    heads = qkv.view(len(qkv), -1, d).float()
    q, k, v = heads[:, :q_heads], heads[:, q_heads : q_heads + kv_heads], heads[:, q_heads + kv_heads :]
    q, k = _normed(q, rotation.q_norm, rotation.eps), _normed(k, rotation.k_norm, rotation.eps)
    if rotation.inv_freq is not None:
        angle = (positions.float()[:, None] * rotation.inv_freq)[:, None, :]
        cos, sin = angle.cos() * rotation.scale, angle.sin() * rotation.scale
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
    q_out.copy_(q.reshape(len(qkv), -1))
    blocks, offsets = slots.long() // block_size, slots.long() % block_size
    for index, values in enumerate((k, v)):
        cache[blocks, index, :, offsets] = values.to(cache.dtype)


def _normed(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    return x if weight is None else x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    low, high = x[..., :half], x[..., half : 2 * half]
    return torch.cat((low * cos - high * sin, high * cos + low * sin, x[..., 2 * half :]), -1)
