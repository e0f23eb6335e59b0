"""Between the QKV product and attention, in one kernel: norm and rotate q and k, write k and v into the paged cache.
In int8, keys are transformed first (`hadamard`), and with them the queries, divided by the span: their products stay.

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

from headrace.ops.cuda.attention import TokenReach
from headrace.ops.cuda.hadamard import quantize, quantize_plainly, span_of, transform, transform_plainly
from headrace.ops.cuda.launching import attempt, early, start, take_turn
from headrace.ops.cuda.sizes import cdiv, power_of_2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """How q and k are normed and rotated. inv_freq [R/2] fp32; norms [D] fp32; None: not at all."""

    inv_freq: torch.Tensor | None
    scale: float
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    eps: float


@triton.jit
def frequencies(inv_freq, cols, HALF: tl.constexpr):
    """Load how fast each channel turns."""
    return tl.load(inv_freq + cols % HALF, mask=cols < 2 * HALF, other=0.0)


@triton.jit
def partners(cols, HALF: tl.constexpr):
    """Return the channel that each is paired with; what is left of the rotated ones, some channel."""
    return (cols + HALF) % (2 * HALF)


@triton.jit
def angle(position, freq, cols, rope_scale, HALF: tl.constexpr):
    """Return (cos, sin) of what channels turn by at a position, sin with the sign that a channel's partner has."""
    turned_by = position.to(tl.float32) * freq
    cos, sin = tl.cos(turned_by) * rope_scale, tl.sin(turned_by) * rope_scale
    return cos, tl.where(cols < HALF, -sin, sin)


@triton.jit
def turn(y, other, cos, sin, is_turned):
    """Rotate channels with those they are paired with. Which product is rounded is said, or each kernel's compiler
    would choose."""
    return tl.where(is_turned, tl.fma(y, cos, other * sin), y)


@triton.jit
def inverse_norm(y, eps, D: tl.constexpr):
    """Return what an RMS norm multiplies each head of [H, D] with: [H, 1]."""
    return (1.0 / tl.sqrt(tl.sum(y * y, axis=1) / D + eps))[:, None]


@triton.jit(do_not_specialize_on_alignment=["slots", "positions", "windows", "num_sinks"])
def _qk_write(
    qkv, q_out, turned, cache, scales, slots, positions, windows, num_sinks, inv_freq, q_norm, k_norm, rope_scale, eps,
    block_size, stride_block, stride_kv, stride_head, stride_scale_block, stride_scale_kv, stride_scale_head,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HAS_ROPE: tl.constexpr,
    HAS_Q_NORM: tl.constexpr, HAS_K_NORM: tl.constexpr, HAS_REACH: tl.constexpr, HAS_SCALES: tl.constexpr,
    SPAN: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    take_turn(IS_EARLY)
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    head = heads[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    inside = (head < Q_HEADS + 2 * KV_HEADS) & (cols < D)
    source = qkv + token * ((Q_HEADS + 2 * KV_HEADS) * D) + head * D
    is_q = head < Q_HEADS
    is_k = (head >= Q_HEADS) & (head < Q_HEADS + KV_HEADS)
    is_turned = inside & (cols < 2 * HALF) & (head < Q_HEADS + KV_HEADS)
    # All that is read is asked for before threads wait for each other: then memory is waited for once.
    position = tl.load(positions + token)
    slot = tl.load(slots + token).to(tl.int64)
    if HAS_ROPE:
        partner = partners(cols, HALF)
        freq = frequencies(inv_freq, cols, HALF)
    if HAS_Q_NORM:
        q_weight = tl.load(q_norm + cols, mask=cols < D, other=0.0)
    if HAS_K_NORM:
        k_weight = tl.load(k_norm + cols, mask=cols < D, other=0.0)
    if HAS_ROPE and HAS_Q_NORM:
        q_partner = tl.load(q_norm + partner, mask=cols < 2 * HALF, other=0.0)
    if HAS_ROPE and HAS_K_NORM:
        k_partner = tl.load(k_norm + partner, mask=cols < 2 * HALF, other=0.0)
    y = tl.load(source + cols, mask=inside, other=0.0).to(tl.float32)
    other = y
    if HAS_ROPE:
        other = tl.load(source + partner, mask=is_turned, other=0.0).to(tl.float32)
    if HAS_Q_NORM or HAS_K_NORM:
        inverse = inverse_norm(y, eps, D)
        if HAS_Q_NORM:
            y = tl.where(is_q, y * inverse * q_weight, y)
            if HAS_ROPE:
                other = tl.where(is_q, other * inverse * q_partner, other)
        if HAS_K_NORM:
            y = tl.where(is_k, y * inverse * k_weight, y)
            if HAS_ROPE:
                other = tl.where(is_k, other * inverse * k_partner, other)
    at_q = q_out + (token * Q_HEADS + head) * D + cols
    if HAS_REACH:
        last = tl.load(windows + token) + tl.load(num_sinks + token) - 1
        if (position > last) & (last >= 0):
            back = y
            if HAS_ROPE:
                cos, sin = angle(last, freq, cols, rope_scale, HALF)
                back = turn(y, other, cos, sin, is_turned)
            if HAS_SCALES:
                back = transform(back, HEADS, BLOCK, SPAN) / SPAN
            at_back = turned + (token * Q_HEADS + head) * D + cols
            tl.store(at_back, back.to(turned.dtype.element_ty), mask=inside & is_q)
    if HAS_ROPE:
        cos, sin = angle(position, freq, cols, rope_scale, HALF)
        y = turn(y, other, cos, sin, is_turned)
    is_v = head >= Q_HEADS + KV_HEADS
    if HAS_SCALES:
        y = tl.where(is_v, y, transform(y, HEADS, BLOCK, SPAN))
        tl.store(at_q, (y / SPAN).to(q_out.dtype.element_ty), mask=inside & is_q)
    else:
        tl.store(at_q, y.to(q_out.dtype.element_ty), mask=inside & is_q)
    block, offset = slot // block_size, slot % block_size
    kv_head = tl.where(is_v, head - Q_HEADS - KV_HEADS, head - Q_HEADS).to(tl.int64)
    place = block * stride_block + tl.where(is_v, stride_kv, 0) + kv_head * stride_head + offset * D
    is_kept = inside & (head >= Q_HEADS)
    if HAS_SCALES:
        values, kept = quantize(y)
        tl.store(cache + place + cols, values, mask=is_kept)
        is_value = heads >= Q_HEADS + KV_HEADS
        kv_heads = tl.where(is_value, heads - Q_HEADS - KV_HEADS, heads - Q_HEADS).to(tl.int64)
        spot = block * stride_scale_block + tl.where(is_value, stride_scale_kv, 0) + kv_heads * stride_scale_head
        is_held = (heads >= Q_HEADS) & (heads < Q_HEADS + 2 * KV_HEADS)
        tl.store(scales + spot + offset, kept.to(tl.bfloat16), mask=is_held)
    else:
        tl.store(cache + place + cols, y.to(cache.dtype.element_ty), mask=is_kept)


def qk_write(
    qkv: torch.Tensor,
    q_out: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    rotation: Rotation,
    *,
    scales: torch.Tensor | None = None,
    reach: TokenReach | None = None,
) -> None:
    """Write the queries to `q_out` [T, Nq·D] and k and v to their slots.

    qkv     [T, (Nq + 2·Nkv)·D]     q heads, then k heads, then v heads
    cache   [blocks, 2, Nkv, S, D]  written at slots = block * S + offset; of the kind of q, or int8
    scales  [blocks, 2, Nkv, S]     bf16, where the cache is int8
    reach   its `turned` is written for tokens that do not see everything
    slots, positions  [T] int32
    """
    if not attempt("qk_write", qkv, lambda: _launch(qkv, q_out, cache, scales, slots, positions, rotation, reach)):
        _plain(qkv, q_out, cache, scales, slots, positions, rotation, reach)


def _launch(
    qkv: torch.Tensor,
    q_out: torch.Tensor,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
    slots: torch.Tensor,
    positions: torch.Tensor,
    rotation: Rotation,
    reach: TokenReach | None,
) -> None:
    _, _, kv_heads, block_size, d = cache.shape
    q_heads = q_out.shape[1] // d
    inv_freq, q_norm, k_norm = rotation.inv_freq, rotation.q_norm, rotation.k_norm
    block = max(power_of_2(d), 16)
    heads = min(power_of_2(q_heads + 2 * kv_heads), 16)
    if scales is not None:
        heads = max(heads, 256 // block)  # the matrix units want 16 rows of 16
    windows, num_sinks, turned = (positions, positions, q_out) if reach is None else (
        reach.windows, reach.num_sinks, reach.turned,
    )  # fmt: skip
    start(
        _qk_write, (len(qkv), cdiv(q_heads + 2 * kv_heads, heads)),
        qkv, q_out, turned, cache, qkv if scales is None else scales, slots, positions, windows, num_sinks,
        qkv if inv_freq is None else inv_freq,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        rotation.scale, rotation.eps, block_size, *cache.stride()[:3],
        *((0, 0, 0) if scales is None else scales.stride()[:3]),
        Q_HEADS=q_heads, KV_HEADS=kv_heads, D=d, HALF=0 if inv_freq is None else len(inv_freq),
        HAS_ROPE=inv_freq is not None, HAS_Q_NORM=q_norm is not None, HAS_K_NORM=k_norm is not None,
        HAS_REACH=reach is not None, HAS_SCALES=scales is not None, SPAN=span_of(d), HEADS=heads, BLOCK=block,
        **early(), num_warps=4,
    )  # fmt: skip


def _plain(
    qkv: torch.Tensor,
    q_out: torch.Tensor,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
    slots: torch.Tensor,
    positions: torch.Tensor,
    rotation: Rotation,
    reach: TokenReach | None,
) -> None:
    _, _, kv_heads, block_size, d = cache.shape
    q_heads = q_out.shape[1] // d
    heads = qkv.view(len(qkv), -1, d).float()
    q, k, v = heads[:, :q_heads], heads[:, q_heads : q_heads + kv_heads], heads[:, q_heads + kv_heads :]
    q, k = _normed(q, rotation.q_norm, rotation.eps), _normed(k, rotation.k_norm, rotation.eps)
    if reach is not None:
        last = torch.minimum(positions, reach.windows + reach.num_sinks - 1).clamp(min=0)
        reach.turned.copy_(_kept(_turned(q, last, rotation), scales).reshape(len(qkv), -1))
    q, k = _turned(q, positions, rotation), _turned(k, positions, rotation)
    q_out.copy_(_kept(q, scales).reshape(len(qkv), -1))
    blocks, offsets = slots.long() // block_size, slots.long() % block_size
    for index, values in enumerate((k, v)):
        if scales is None:
            cache[blocks, index, :, offsets] = values.to(cache.dtype)
            continue
        rounded, steps = quantize_plainly(values if index else transform_plainly(values))
        cache[blocks, index, :, offsets] = rounded
        scales[blocks, index, :, offsets] = steps


def _kept(q: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Transform queries for keys that are."""
    return q if scales is None else transform_plainly(q) / span_of(q.shape[-1])


def _normed(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    return x if weight is None else x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _turned(x: torch.Tensor, positions: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    if rotation.inv_freq is None:
        return x
    angle = (positions.float()[:, None] * rotation.inv_freq)[:, None, :]
    cos, sin = angle.cos() * rotation.scale, angle.sin() * rotation.scale
    half = cos.shape[-1]
    low, high = x[..., :half], x[..., half : 2 * half]
    return torch.cat((low * cos - high * sin, high * cos + low * sin, x[..., 2 * half :]), -1)
