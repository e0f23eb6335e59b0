"""Each op against its formula, written the slow way in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.core.request import Reach
from headrace.ops import reference as ops

Floats = NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def test_embed_picks_rows_and_scales() -> None:
    table = normal(10, 4)
    picked = ops.embed(np.array([3, 3, 9], np.int32), table, scale=2.0)
    np.testing.assert_array_equal(picked, table[[3, 3, 9]] * 2)
    assert picked.dtype == np.float32


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    x, weight = normal(3, 8), normal(8, seed=1)
    want = [[float(v) / math.sqrt(sum(float(u) ** 2 for u in row) / 8 + 1e-3) for v in row] for row in x]
    np.testing.assert_allclose(ops.rms_norm(x, weight, eps=1e-3), np.array(want) * weight, rtol=1e-5)


def test_linear_multiplies_by_the_transpose_and_adds_the_bias() -> None:
    x, weight, bias = normal(21, 40), normal(33, 40, seed=1), normal(33, seed=2)
    want = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    np.testing.assert_allclose(ops.linear(x, weight, bias), want, atol=2e-5)


def test_linear_of_no_rows_is_empty() -> None:
    assert ops.linear(normal(0, 40), normal(33, 40)).shape == (0, 33)


# Shapes of SmolLM2, of Gemma 3, of the tiny checkpoints, and some that fill no register evenly.
SHAPES = [
    (960, 576),
    (576, 1536),
    (3072, 576),
    (4096, 640),
    (640, 1024),
    (128, 64),
    (260, 64),
    (33, 65),
    (7, 24),
    (1, 1),
]


@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
def test_a_row_of_linear_has_the_same_bits_in_any_company(num_outputs: int, num_inputs: int) -> None:
    x, weight = normal(37, num_inputs), normal(num_outputs, num_inputs, seed=1)
    whole = ops.linear(x, weight)
    for first, last in [(0, 1), (5, 6), (15, 16), (16, 17), (36, 37), (3, 20), (11, 37)]:
        np.testing.assert_array_equal(ops.linear(x[first:last], weight), whole[first:last])


def test_one_broken_row_leaves_the_others_alone() -> None:
    x, weight = normal(20, 64), normal(128, 64, seed=1)
    broken = x.copy()
    broken[7] = np.nan
    got = ops.linear(broken, weight)
    assert np.isnan(got[7]).all()
    np.testing.assert_array_equal(np.delete(got, 7, axis=0), np.delete(ops.linear(x, weight), 7, axis=0))


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("silu", lambda v: v / (1 + math.exp(-v))),
        ("gelu", lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2)))),
        ("gelu_tanh", lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))),
        ("relu2", lambda v: max(v, 0.0) ** 2),
    ],
)
def test_activations_follow_their_formulas(activation: ops.ActivationName, formula: object) -> None:
    x = np.linspace(-12, 12, 101, dtype=np.float32)
    want = [formula(float(v)) for v in x]  # type: ignore[operator]
    got = ops.activate(x, activation)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


def test_silu_of_large_negative_numbers_is_zero_without_a_warning() -> None:
    np.testing.assert_array_equal(ops.activate(np.array([-1e4], np.float32), "silu"), [0.0])


def test_glu_gates_the_second_half_with_the_first() -> None:
    x = normal(3, 10)
    np.testing.assert_array_equal(ops.glu(x, "relu2"), np.maximum(x[:, :5], 0) ** 2 * x[:, 5:])


def test_rotation_multiplies_complex_pairs() -> None:
    x, positions = normal(4, 2, 10), np.array([0, 1, 7, 300], np.int32)
    inv_freq = np.array([1.0, 0.1, 0.01], np.float32)  # six channels turn, four stay
    pairs = x[..., :3] + 1j * x[..., 3:6]
    turned = pairs * np.exp(1j * positions[:, None, None] * inv_freq) * 1.5
    got = ops.rotate(x, positions, inv_freq, scale=1.5)
    np.testing.assert_allclose(got, np.concatenate((turned.real, turned.imag, x[..., 6:]), axis=-1), atol=1e-4)


def test_position_zero_is_not_rotated() -> None:
    x = normal(1, 3, 8)
    np.testing.assert_array_equal(ops.rotate(x, np.zeros(1, np.int32), np.ones(4, np.float32)), x)


def test_qk_write_norms_rotates_and_stores_at_the_slots() -> None:
    num_heads, kv_heads, dim, block_size = 4, 2, 6, 4
    qkv = normal(3, (num_heads + 2 * kv_heads) * dim)
    q_norm, k_norm = normal(dim, seed=1), normal(dim, seed=2)
    positions, slots = np.array([4, 5, 0], np.int32), np.array([4 * 4 + 0, 4 * 4 + 1, 2 * 4 + 3], np.int64)
    inv_freq = np.array([1.0, 0.3, 0.1], np.float32)
    cache = np.zeros((2, 5, block_size, kv_heads, dim), np.float32)
    got = ops.qk_write(
        qkv, cache, slots, positions, num_heads=num_heads, inv_freq=inv_freq, q_norm=q_norm, k_norm=k_norm, eps=1e-5
    )
    heads = qkv.reshape(3, num_heads + 2 * kv_heads, dim)
    q = ops.rotate(ops.rms_norm(heads[:, :4], q_norm, eps=1e-5), positions, inv_freq)
    k = ops.rotate(ops.rms_norm(heads[:, 4:6], k_norm, eps=1e-5), positions, inv_freq)
    np.testing.assert_array_equal(got, q.reshape(3, -1))
    flat = cache.reshape(2, 5 * block_size, kv_heads, dim)
    np.testing.assert_array_equal(flat[0, slots], k)
    np.testing.assert_array_equal(flat[1, slots], heads[:, 6:])
    untouched = np.setdiff1d(np.arange(5 * block_size), slots)
    assert not flat[:, untouched].any()


def naive_attention(
    q: Floats, k: Floats, v: Floats, position: int, window: int | None, softcap: float | None
) -> Floats:
    """One token's heads over unpaged keys and values [L, Nkv, D], one score at a time."""
    num_heads, dim = q.shape
    group = num_heads // k.shape[1]
    out = np.zeros((num_heads, dim))
    first = 0 if window is None else max(position - window + 1, 0)
    for head in range(num_heads):
        scores = []
        for p in range(first, position + 1):
            score = 0.3 * sum(float(a) * float(b) for a, b in zip(q[head], k[p, head // group], strict=True))
            scores.append(score if softcap is None else softcap * math.tanh(score / softcap))
        weights = np.exp(np.array(scores) - max(scores))
        out[head] = (weights / weights.sum()) @ v[first : position + 1, head // group].astype(np.float64)
    return out.astype(np.float32)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 5, 8, 100])
@pytest.mark.parametrize(("num_heads", "kv_heads"), [(4, 2), (3, 3), (4, 1)])
def test_attention_reads_each_sequence_through_its_own_blocks(
    num_heads: int, kv_heads: int, window: int | None, softcap: float | None
) -> None:
    dim, block_size = 8, 4
    starts, lengths = [9, 0, 17], [4, 6, 1]  # a chunk, a whole prompt, a decode
    tables = np.array([[5, 2, 9, 0, -1], [7, 1, -1, -1, -1], [3, 8, 6, 4, 10]], np.int32)
    cache = np.full((2, 11, block_size, kv_heads, dim), np.nan, np.float32)  # what is not written must not be read
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    keys = [normal(end, kv_heads, dim, seed=i) for i, end in enumerate(ends)]
    values = [normal(*k.shape, seed=10 + i) for i, k in enumerate(keys)]
    for row, table in enumerate(tables):
        for p in range(len(keys[row])):
            cache[0, table[p // block_size], p % block_size] = keys[row][p]
            cache[1, table[p // block_size], p % block_size] = values[row][p]
    q = normal(sum(lengths), num_heads * dim, seed=20)
    positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]).astype(np.int32)
    row_starts = np.cumsum([0, *lengths]).astype(np.int32)
    got = ops.attention(q, cache, tables, row_starts, positions, scale=0.3, window=window, softcap=softcap).reshape(
        -1, num_heads, dim
    )
    for token, row in enumerate(np.repeat(np.arange(3), lengths)):
        want = naive_attention(
            q[token].reshape(num_heads, dim), keys[row], values[row], int(positions[token]), window, softcap
        )
        np.testing.assert_allclose(got[token], want, atol=2e-6)


def test_head_scales_then_caps() -> None:
    x, table = normal(3, 16), normal(50, 16, seed=1)
    raw = x.astype(np.float64) @ table.T.astype(np.float64) * 0.5
    np.testing.assert_allclose(ops.head(x, table, scale=0.5), raw, atol=1e-5)
    np.testing.assert_allclose(ops.head(x, table, scale=0.5, softcap=2.0), 2.0 * np.tanh(raw / 2.0), atol=1e-5)


def test_far_tokens_see_sinks_and_window_as_if_nothing_else_existed() -> None:
    """StreamingLLM's definition: keys rotated by their place in the cache, after the evicted ones are gone."""
    kv_heads, dim, block_size, length = 2, 8, 4, 23
    reach, inv_freq = Reach(window=6, num_sinks=3), np.array([1.0, 0.3, 0.05], np.float32)
    k, v, q = normal(length, kv_heads, dim), normal(length, kv_heads, dim, seed=1), normal(length, 4, dim, seed=2)
    where = np.arange(length, dtype=np.int32)
    cache = np.zeros((2, 6, block_size, kv_heads, dim), np.float32)
    cache[0].reshape(-1, kv_heads, dim)[:length] = ops.rotate(k, where, inv_freq)
    cache[1].reshape(-1, kv_heads, dim)[:length] = v
    table, starts = np.arange(6, dtype=np.int32)[None], np.array([0, length], np.int32)
    got = ops.attention(
        ops.rotate(q, where, inv_freq).reshape(length, -1),
        cache,
        table,
        starts,
        where,
        scale=0.3,
        paths=[ops.Path(reach, 0)],
        inv_freq=inv_freq,
    )
    for p in range(length):
        kept = where[: p + 1] if p < 9 else np.r_[0:3, p - 5 : p + 1]
        places = np.arange(len(kept), dtype=np.int32)
        keys, query = ops.rotate(k[kept], places, inv_freq), ops.rotate(q[p : p + 1], places[-1:], inv_freq)[0]
        want = naive_attention(query, keys, v[kept], len(kept) - 1, None, None)
        np.testing.assert_allclose(got[p].reshape(4, dim), want, atol=5e-6)


def test_a_sink_logit_takes_weight_and_gives_nothing() -> None:
    kv_heads, dim, length = 2, 8, 5
    cache = np.stack([normal(1, length, kv_heads, dim), normal(1, length, kv_heads, dim, seed=1)])
    q, where, sinks = (
        normal(1, 4 * dim, seed=2),
        np.array([length - 1], np.int32),
        np.array([-50.0, 0.0, 1.0, 50.0], np.float32),
    )
    table, starts = np.zeros((1, 1), np.int32), np.array([0, 1], np.int32)
    plain = ops.attention(q, cache, table, starts, where, scale=1.0).reshape(4, dim)
    got = ops.attention(q, cache, table, starts, where, scale=1.0, sinks=sinks).reshape(4, dim)
    scores = np.einsum("hd,lhd->hl", q.reshape(4, dim), np.repeat(cache[0, 0], 2, axis=1))
    total = np.exp(scores).sum(axis=1)
    np.testing.assert_allclose(got, plain * (total / (total + np.exp(sinks)))[:, None], rtol=1e-4, atol=1e-7)
