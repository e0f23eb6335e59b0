"""The ops in numpy fp32: the specification that every other backend is held to.

Plain arrays in, plain arrays out; nothing is owned, and only `qk_write` changes an argument (the cache).
Invariant: a token's result has the same bits whatever else is in the batch and however its prompt was cut into chunks.
 - `linear` calls BLAS on tiles of exactly ROW_TILE rows, zero-padded: a library may pick another kernel, and so another
   order of summation, for another number of rows. Where it treats the rows of one tile unlike, it gets them one by one.
 - `attention` works query by query; the shapes it hands to BLAS depend on the query's position alone.
 - everything else is elementwise or reduces over the last axis of one token.
Callers: `executor.reference`, parity tests of the other backends.
Letters: T packed tokens, K inputs, N outputs, Nq/Nkv query/kv heads, D head size, B rows, S block size, V vocabulary.
Source: RMS norm, Zhang & Sennrich 2019; rotary embedding, Su et al. 2021; GLU, Shazeer 2020; paging, Kwon et al. 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple, assert_never

import numpy as np
from numpy.typing import NDArray

from headrace.core.request import Reach
from headrace.ops import kv_values
from headrace.ops.kv_values import KvArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int32]
ActivationName = Literal["silu", "gelu_tanh", "gelu", "relu2"]

ROW_TILE = 16
_PROBED_OUTPUTS = 4096  # BLAS libraries treat small products apart, not large ones


def embed(tokens: Indices, table: Floats, *, scale: float = 1.0) -> Floats:
    """Return table[tokens] * scale, [T, H]. tokens [T], table [V, H]."""
    rows: Floats = table[tokens]
    return rows * np.float32(scale)


def rms_norm(x: Floats, weight: Floats, *, eps: float) -> Floats:
    """Return x / sqrt(mean(x²) + eps) * weight over the last axis. x [..., N], weight [N]."""
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    normed: Floats = x / np.sqrt(mean_square + np.float32(eps)) * weight
    return normed


def linear(x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """Return x @ weight.T + bias, [T, N]. x [T, K], weight [N, K], bias [N].

    Cost: as many multiplies as the next multiple of ROW_TILE rows.
    """
    num_tokens, num_inputs = x.shape
    tile = ROW_TILE if _tiles_are_uniform(min(len(weight), _PROBED_OUTPUTS), num_inputs) else 1
    padded = np.zeros((-(-num_tokens // tile) * tile, num_inputs), np.float32)
    padded[:num_tokens] = x
    out = np.empty((len(padded), len(weight)), np.float32)
    for first in range(0, len(padded), tile):
        np.matmul(padded[first : first + tile], weight.T, out=out[first : first + tile])
    if bias is not None:
        out += bias
    return out[:num_tokens]


@cache
def _tiles_are_uniform(num_outputs: int, num_inputs: int) -> bool:
    """Find out whether BLAS sums every row of a tile in the same order: equal rows must give equal bits.

    Small products fail in some libraries, whose kernels treat the last rows of a tile apart; they go row by row.
    """
    values = np.random.RandomState(0).standard_normal(1021).astype(np.float32)
    weight = np.resize(values, (num_outputs, num_inputs))
    tile = np.tile(np.resize(values[::-1], num_inputs), (ROW_TILE, 1))
    out = tile @ weight.T
    return bool((out == out[0]).all())


def activate(x: Floats, activation: ActivationName) -> Floats:
    """Return the activation of every element.

    silu x·sigmoid(x); gelu x·Φ(x); gelu_tanh its tanh approximation; relu2 max(x, 0)²
    """
    one, half = np.float32(1.0), np.float32(0.5)
    y: Floats
    curve: Floats
    match activation:
        case "silu":
            with np.errstate(over="ignore"):  # exp(-x) = inf below -88 gives the right limit, -0
                curve = np.exp(-x)
            y = x / (one + curve)
        case "gelu_tanh":
            inner = np.float32(math.sqrt(2.0 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
            curve = np.tanh(inner)
            y = half * x * (one + curve)
        case "gelu":
            erf = np.frompyfunc(math.erf, 1, 1)  # numpy has no erf; exact and slow is right for a specification
            curve = np.asarray(erf(x * math.sqrt(0.5)), np.float32)
            y = half * x * (one + curve)
        case "relu2":
            y = np.square(np.maximum(x, np.float32(0.0)))
        case _:
            assert_never(activation)
    return y


def glu(gate_up: Floats, activation: ActivationName) -> Floats:
    """Return activation(gate) * up, [T, F]. gate_up [T, 2F], gate first."""
    half = gate_up.shape[-1] // 2
    return activate(gate_up[:, :half], activation) * gate_up[:, half:]


def rotate(x: Floats, positions: Indices, inv_freq: Floats, *, scale: float = 1.0) -> Floats:
    """Turn the pairs (i, i + R/2) of each head by position * inv_freq[i]; channels from R on stay as they are.

    x [T, heads, D], positions [T], inv_freq [R/2] in radians per position; `scale` multiplies cos and sin.
    The angle is an fp32 product: at long positions its rounding is part of what models were trained with.
    """
    half = len(inv_freq)
    angle = (positions.astype(np.float32)[:, None] * inv_freq)[:, None, :]
    cos, sin = np.cos(angle) * np.float32(scale), np.sin(angle) * np.float32(scale)
    low, high = x[..., :half], x[..., half : 2 * half]
    return np.concatenate((low * cos - high * sin, high * cos + low * sin, x[..., 2 * half :]), axis=-1)


def qk_write(
    qkv: Floats,
    cache: KvArray,
    slots: NDArray[np.int64],
    positions: Indices,
    *,
    num_heads: int,
    inv_freq: Floats | None,
    rope_scale: float = 1.0,
    q_norm: Floats | None = None,
    k_norm: Floats | None = None,
    eps: float = 1e-6,
) -> Floats:
    """Norm and rotate q and k, write k and v to the cache, return q as [T, Nq·D].

    qkv       [T, (Nq + 2·Nkv)·D]   q heads, then k heads, then v heads
    cache     a layer's blocks (`ops.kv_values`), written at `slots`
    slots     [T]                   block * S + offset
    positions [T]
    inv_freq  [R/2]                 None leaves q and k unrotated
    q_norm, k_norm  [D]             RMS norm of each head, before the rotation
    """
    num_tokens = len(qkv)
    block_size, kv_heads, head_dim = kv_values.shape_of(cache)
    heads = qkv.reshape(num_tokens, num_heads + 2 * kv_heads, head_dim)
    q, k, v = heads[:, :num_heads], heads[:, num_heads : num_heads + kv_heads], heads[:, num_heads + kv_heads :]
    if q_norm is not None:
        q = rms_norm(q, q_norm, eps=eps)
    if k_norm is not None:
        k = rms_norm(k, k_norm, eps=eps)
    if inv_freq is not None:
        q = rotate(q, positions, inv_freq, scale=rope_scale)
        k = rotate(k, positions, inv_freq, scale=rope_scale)
    blocks, offsets = np.divmod(slots, block_size)
    kv_values.write(cache, blocks, offsets, k, v)
    return np.ascontiguousarray(q).reshape(num_tokens, num_heads * head_dim)


def attention(
    q: Floats,
    cache: KvArray,
    block_tables: Indices,
    row_starts: Indices,
    positions: Indices,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Floats | None = None,
    paths: Sequence[Path] | None = None,
    inv_freq: Floats | None = None,
) -> Floats:
    """Attend each query token to its own sequence's cached tokens up to itself; return [T, Nq·D].

    q            [T, Nq·D]               rotated
    cache        a layer's blocks (`ops.kv_values`), read only; holds this step's K and V already
    block_tables [B, M]                  block numbers in position order, -1 past the end
    row_starts   [B+1]                   first packed token of each row
    positions    [T]                     ascending and contiguous within a row
    sinks        [Nq]                    one more score per head, without a value
    paths        [B]                     rows that see less than all; None: none does
    inv_freq     [R/2]                   how q and the keys were rotated; only for rows with sinks
    score = q·k * scale; softcap c: c * tanh(score / c); window W: positions p-W+1 … p only; then softmax.
    Query head h reads kv head h // (Nq / Nkv). A path's tokens beyond its num_seen see its sinks and its window, the
    sinks with the query turned back to position num_seen - 1; a narrower window of the layer takes their place.
    """
    block_size, kv_heads, head_dim = kv_values.shape_of(cache)
    out = np.empty_like(q)
    for row in range(len(row_starts) - 1):
        first, last = int(row_starts[row]), int(row_starts[row + 1])
        begin, end = int(positions[first]), int(positions[last - 1]) + 1
        reach, num_evicted = (None, 0) if paths is None else paths[row]
        if reach is not None and window is not None and window <= reach.window:
            reach = None
        nearest = reach.window if reach is not None else window
        oldest = 0 if nearest is None else max(begin - nearest + 1, 0)
        if reach is not None and begin < reach.num_seen:
            oldest = 0
        base = oldest // block_size
        held = kv_values.read(cache, block_tables[row, base - num_evicted : -(-end // block_size) - num_evicted])
        num_sinks = 0 if reach is None else reach.num_sinks
        kept = kv_values.read(cache, block_tables[row, : -(-num_sinks // block_size)])[:, :num_sinks]
        for token in range(first, last):
            position = int(positions[token])
            heads = q[token].reshape(kv_heads, -1, head_dim)
            is_far = reach is not None and position >= reach.num_seen
            lowest = 0 if nearest is None or (reach is not None and not is_far) else max(position - nearest + 1, 0)
            seen = held[:, lowest - base * block_size : position + 1 - base * block_size]
            scores = np.matmul(heads, seen[0].transpose(1, 2, 0))
            values = seen[1]
            if reach is not None and is_far and num_sinks:
                turned = _turn(heads, reach.num_seen - 1 - position, inv_freq)
                scores = np.concatenate((np.matmul(turned, kept[0].transpose(1, 2, 0)), scores), axis=-1)
                values = np.concatenate((kept[1], values))
            out[token] = _attend(scores * np.float32(scale), values, softcap, sinks).reshape(-1)
    return out


class Path(NamedTuple):
    """What a row's tokens see, and how many blocks are missing from its table behind those of the sinks."""

    reach: Reach | None
    num_evicted: int


def _turn(heads: Floats, positions: int, inv_freq: Floats | None) -> Floats:
    """Rotate one token's heads [Nkv, G, D] on by some positions."""
    if inv_freq is None:
        return heads
    return rotate(heads, np.full(len(heads), positions, np.int32), inv_freq)


def _attend(scores: Floats, values: Floats, softcap: float | None, sinks: Floats | None) -> Floats:
    """Weigh one token's values. scores [Nkv, G, L], values [L, Nkv, D], sinks [Nkv · G]; returns [Nkv, G, D]."""
    if softcap is not None:
        scores = _cap(scores, softcap)
    top = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        sinks = sinks.reshape(*scores.shape[:2], 1)
        top = np.maximum(top, sinks)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks - top)
    out: Floats = np.matmul(weights / total, values.transpose(1, 0, 2))
    return out


def head(x: Floats, table: Floats, *, scale: float = 1.0, softcap: float | None = None) -> Floats:
    """Return logits [R, V] = (x @ table.T) * scale, soft-capped. x [R, H], table [V, H]."""
    logits = linear(x, table)
    if scale != 1.0:
        logits *= np.float32(scale)
    return logits if softcap is None else _cap(logits, softcap)


def _cap(x: Floats, cap: float) -> Floats:
    """Return cap * tanh(x / cap)."""
    capped: Floats = np.float32(cap) * np.tanh(x / np.float32(cap))
    return capped
