"""Each native op alone, on numpy arrays in the shapes of `ops.reference`: for debugging and for the parity tests.

Owns nothing: `PagedCache` holds the bf16 blocks it allocates, the functions only borrow. Serving never comes through
here; whole steps run inside `step.NativeProgram`, which calls the same kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.core.request import Reach
from headrace.ops.kv_values import hadamard, hadamard_block
from headrace.ops.native.step import (
    KV_LANES,
    KV_SLOT,
    KV_TYPES,
    SAMPLE,
    SAMPLING,
    AttentionArgs,
    AttentionItem,
    KvLayer,
    QkWriteArgs,
    SampleContext,
    kv_head_bytes,
    step_library,
)

Floats = NDArray[np.float32]
Indices = NDArray[np.int32]

MAX_ITEM_ROWS = 64
KV_CHUNK, SINK_CHUNK = 512, -1  # kKvChunk, kSinkChunk of csrc/kernels.h


class PagedCache:
    """K and V of one layer in the native layout, zeroed. kv_type is one of KV_TYPES."""

    def __init__(
        self, *, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, kv_type: str = "bf16"
    ) -> None:
        head_bytes = kv_head_bytes(kv_type, block_size=block_size, head_dim=head_dim)
        self.k = np.zeros(num_blocks * kv_heads * head_bytes, np.uint8)
        self.v = np.zeros_like(self.k)
        self.layer = KvLayer(
            k=self.k.ctypes.data,
            v=self.v.ctypes.data,
            block_stride=kv_heads * head_bytes,
            head_stride=head_bytes,
            block_size=block_size,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dim=-(-head_dim // KV_LANES) * KV_LANES,
            type=KV_TYPES.index(kv_type),
        )

    def spoil(self) -> None:
        """Fill every block with what another sequence may have left there: NaN."""
        self.k.view(np.uint16)[:] = self.v.view(np.uint16)[:] = 0x7FC0

    def unpack(self) -> Floats:
        """Return [2, blocks, block_size, kv_heads, head_dim] fp32: what `ops.reference` reads."""
        values, scales = self._stored()
        if scales is None:
            return values
        floats = np.where(np.isnan(scales), np.float32(np.nan), values * np.nan_to_num(scales))
        floats[0] = hadamard(floats[0]) / np.float32(hadamard_block(self.layer.head_dim))
        return floats

    def unpack_int8(self) -> tuple[NDArray[np.int8], Floats]:
        """Return the integers [2, blocks, block_size, kv_heads, head_dim] and the scales, last axis 1."""
        values, scales = self._stored()
        if scales is None:
            raise ValueError("a cache of bf16 has no integers")
        return values.astype(np.int8), scales

    def _stored(self) -> tuple[Floats, Floats | None]:
        layer = self.layer
        size, heads, dim = layer.block_size, layer.kv_heads, layer.dim
        both = np.stack([self.k, self.v]).reshape(2, -1, heads, layer.head_stride)
        if KV_TYPES[layer.type] == "int8":
            elements = both[..., : size * dim].view(np.int8).astype(np.float32)
            tail = np.ascontiguousarray(both[..., size * dim :]).view(np.uint16)
            scales = _widen(tail).transpose(0, 1, 3, 2)[..., None]
        else:
            elements, scales = _widen(both.view(np.uint16)), None
        k = elements[0].reshape(-1, heads, size // 16, dim // 2, 16, 2).transpose(0, 2, 4, 1, 3, 5)
        v = elements[1].reshape(-1, heads, size // 2, dim, 2).transpose(0, 2, 4, 1, 3)
        values = np.stack([k.reshape(-1, size, heads, dim), v.reshape(-1, size, heads, dim)])
        return np.ascontiguousarray(values[..., : layer.head_dim]), scales


def _widen(bits: NDArray[np.uint16]) -> Floats:
    """Return bf16 bits as fp32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def rms_norm(x: Floats, weight: Floats, *, eps: float, add_to: Floats | None = None) -> Floats:
    """Return rms_norm(x) * weight, or that added to `add_to`. x [T, N]."""
    out = np.empty_like(x) if add_to is None else np.array(add_to)
    step_library().hr_rms_norm(
        x.ctypes.data, weight.ctypes.data, eps, x.shape[0], x.shape[1], int(add_to is not None), out.ctypes.data
    )
    return out


def qk_write(
    qkv: Floats,
    cache: PagedCache,
    slots: NDArray[np.int64],
    *,
    num_heads: int,
    cos: Floats | None,
    sin: Floats | None,
    q_norm: Floats | None = None,
    k_norm: Floats | None = None,
    eps: float = 1e-6,
    clears_tail: NDArray[np.bool_] | None = None,
) -> Floats:
    """Norm and rotate, write K and V at `slots`, return q [T, Nq·D]. cos, sin [T, R/2]: of each token's angles."""
    layer = cache.layer
    where = np.zeros(len(slots), KV_SLOT)
    where["block"], where["offset"] = np.divmod(slots, layer.block_size)
    if clears_tail is not None:
        where["clears_tail"] = clears_tail
    q = np.empty((len(qkv), num_heads * layer.head_dim), np.float32)
    args = QkWriteArgs(
        src=qkv.ctypes.data,
        ld_src=qkv.shape[1],
        dst=q.ctypes.data,
        ld_dst=q.shape[1],
        q_norm=None if q_norm is None else q_norm.ctypes.data,
        k_norm=None if k_norm is None else k_norm.ctypes.data,
        eps=eps,
        cos=None if cos is None else cos.ctypes.data,
        sin=None if sin is None else sin.ctypes.data,
        half=0 if cos is None else cos.shape[1],
        num_heads=num_heads,
        kv=ctypes.pointer(layer),
        slots=where.ctypes.data,
    )
    step_library().hr_qk_write(ctypes.byref(args), len(qkv))
    return q


def attention(
    q: Floats,
    cache: PagedCache,
    block_tables: Indices,
    row_starts: Indices,
    positions: Indices,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Floats | None = None,
    reach: Reach | None = None,
    inv_freq: Floats | None = None,
    item_rows: int = 48,
    is_split: bool = False,
) -> Floats:
    """Attend as `ops.reference.attention`, every row with the same reach and nothing evicted.

    item_rows  (token, head) pairs computed together
    is_split   compute every chunk of positions apart, last chunk first, then merge
    Neither may change a bit of the result.
    """
    layer = cache.layer
    num_heads = q.shape[1] // layer.head_dim
    group = num_heads // layer.kv_heads
    out = np.full_like(q, np.nan)
    args = AttentionArgs(
        q=q.ctypes.data,
        ldq=q.shape[1],
        out=out.ctypes.data,
        ldo=q.shape[1],
        kv=ctypes.pointer(layer),
        group=group,
        scale=scale,
        softcap=softcap or 0.0,
        sink_logits=None if sinks is None else sinks.ctypes.data,
    )
    if reach is not None and inv_freq is not None:
        angles = np.minimum(0, reach.num_seen - 1 - positions).astype(np.float32)[:, None] * inv_freq
        cos, sin = np.cos(angles), np.sin(angles)
        args.half, args.turn_cos, args.turn_sin = len(inv_freq), cos.ctypes.data, sin.ctypes.data
    items = []
    for row in range(len(row_starts) - 1):
        start, stop = int(row_starts[row]), int(row_starts[row + 1])
        table, pos0, pairs = block_tables[row].ctypes.data, int(positions[start]), (stop - start) * group
        near = pairs
        if reach is not None and (window is None or window > reach.window):
            near = min(max(reach.num_seen - pos0, 0), stop - start) * group
        for head in range(layer.kv_heads):
            for first in range(0, near, item_rows):
                last = min(first + item_rows, near)
                items.append(AttentionItem(table, start, pos0, head, first, last, 0, window or 0))
            for first in range(near, pairs, item_rows):
                assert reach is not None
                last = min(first + item_rows, pairs)
                items.append(AttentionItem(table, start, pos0, head, first, last, 0, reach.window, reach.num_sinks))
    if any(item.last - item.first > MAX_ITEM_ROWS for item in items):
        raise ValueError(f"items of {item_rows} pairs; the kernel takes {MAX_ITEM_ROWS}")
    if is_split:
        for item in items:
            _attend_split(args, item)
    else:
        step_library().hr_attention(ctypes.byref(args), (AttentionItem * len(items))(*items), len(items))
    return out


def _attend_split(args: AttentionArgs, item: AttentionItem) -> None:
    """Attend to each chunk of positions apart and merge."""
    pos_first, pos_last = item.pos0 + item.first // args.group, item.pos0 + (item.last - 1) // args.group
    low = max(pos_first - item.window + 1, 0) if item.window else 0
    chunks = [*([SINK_CHUNK] if item.num_sinks else []), *range(low // KV_CHUNK, pos_last // KV_CHUNK + 1)]
    partials = np.full((len(chunks), (item.last - item.first) * (args.kv.contents.dim + 2)), np.nan, np.float32)
    for index, chunk in reversed(list(enumerate(chunks))):
        part = AttentionItem.from_buffer_copy(item)
        part.chunk, part.partial = chunk, partials[index].ctypes.data
        step_library().hr_attention(ctypes.byref(args), ctypes.byref(part), 1)
    step_library().hr_attention_merge(ctypes.byref(args), ctypes.byref(item), partials.ctypes.data, len(chunks))


def finish_logits(logits: Floats, *, scale: float = 1.0, softcap: float | None = None) -> Floats:
    """Return the scaled and soft-capped logits."""
    out = np.array(logits)
    step_library().hr_finish_logits(out.ctypes.data, out.size, scale, softcap or 0.0)
    return out


def sample_row(
    logits: Floats,
    sampling: NDArray[np.void],  # one record of dtype SAMPLING
    *,
    num_output: int = 0,
    history: Sequence[int] = (),
    prompt_len: int = 0,
    banned: Sequence[int] = (),
    bias: Sequence[tuple[int, float]] = (),
) -> np.void:
    """Draw one token; return the SAMPLE record."""
    if sampling.dtype != SAMPLING:
        raise ValueError("sampling is one record of dtype SAMPLING")
    spec = np.array(sampling)
    spec["num_bias"], spec["bias_at"] = len(bias), 0
    ids = np.array([token for token, _ in bias], np.int32)
    values = np.array([value for _, value in bias], np.float32)
    seen, never = np.array(history, np.int32), np.array(banned, np.int32)
    context = SampleContext(
        sampling=spec.ctypes.data,
        bias_ids=ids.ctypes.data,
        bias_values=values.ctypes.data,
        history=seen.ctypes.data if len(seen) else None,
        num_history=len(seen),
        prompt_len=prompt_len,
        banned=never.ctypes.data,
        num_banned=len(never),
        num_output=num_output,
    )
    scratch, out = np.array(logits), np.zeros(1, SAMPLE)
    step_library().hr_sample_row(scratch.ctypes.data, len(scratch), ctypes.byref(context), out.ctypes.data)
    record: np.void = out[0]
    return record


def score_row(logits: Floats, token: int, *, num_top: int = 0) -> np.void:
    """Return the SAMPLE record with the log probability of `token` and the best alternatives."""
    out = np.zeros(1, SAMPLE)
    step_library().hr_score_row(logits.ctypes.data, len(logits), token, num_top, out.ctypes.data)
    record: np.void = out[0]
    return record
