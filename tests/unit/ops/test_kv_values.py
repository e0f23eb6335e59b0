"""K and V kept as fp32, bf16 and int8: what is read back, and what it takes."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.ops import kv_values
from headrace.ops.kv_values import KvFormat, KvShape

SHAPE = KvShape(block_size=4, kv_heads=2, head_dim=8)
# Error of a channel relative to the largest. int8: half of 1/127, and the scale rounds up by up to 2^-7.
ERRORS: dict[KvFormat, float] = {"fp32": 0.0, "bf16": 2.0**-8, "int8": 0.5 / 127 * (1 + 2**-7)}


def written(kv_format: KvFormat, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Write tokens to the slots of blocks 2 and 0, read them back in that order: [2, tokens, Nkv, D]."""
    cache = kv_values.zeros(kv_format, num_blocks=3, shape=SHAPE)
    assert kv_values.shape_of(cache) == SHAPE
    where = np.arange(len(k))
    kv_values.write(cache, np.array([2, 0])[where // 4], where % 4, k, v)
    return kv_values.read(cache, np.array([2, 0], np.int32))[:, : len(k)]


@pytest.mark.parametrize("kv_format", ERRORS)
def test_what_is_written_is_read_back_within_the_formats_precision(kv_format: KvFormat) -> None:
    random = np.random.default_rng(0)
    heads = random.standard_normal((2, 7, 2, 8), np.float32) * np.exp(random.uniform(-9, 9, (2, 7, 2, 1)))
    heads = heads.astype(np.float32)
    error = np.linalg.norm(written(kv_format, heads[0], heads[1]) - heads, axis=-1)
    assert (error <= ERRORS[kv_format] * np.sqrt(8.0) * np.linalg.norm(heads, axis=-1)).all()


@pytest.mark.parametrize("head_dim", [8, 24, 80, 256])
def test_one_large_channel_of_a_key_does_not_cost_the_others_their_precision(head_dim: int) -> None:
    k = np.random.default_rng(2).standard_normal((50, 1, head_dim), np.float32)
    k[..., 3] += 40.0
    cache = kv_values.zeros("int8", num_blocks=1, shape=KvShape(50, 1, head_dim))
    where = np.arange(50)
    kv_values.write(cache, np.zeros(50, np.int64), where, k, k)
    as_key, as_value = kv_values.read(cache, np.zeros(1, np.int32)) - k
    assert np.linalg.norm(as_key) < 0.75 * np.linalg.norm(as_value)  # V is kept without the transform


@pytest.mark.parametrize("head_dim", [1, 8, 24, 80, 256])
def test_the_transform_twice_is_the_block_size_and_keeps_scores(head_dim: int) -> None:
    random = np.random.default_rng(3)
    q, k = random.standard_normal((2, 5, head_dim), np.float32)
    block = kv_values.hadamard_block(head_dim)
    np.testing.assert_allclose(kv_values.hadamard(kv_values.hadamard(q)), block * q, rtol=1e-5, atol=1e-4)
    scores = (kv_values.hadamard(q) * kv_values.hadamard(k)).sum(axis=-1) / block
    np.testing.assert_allclose(scores, (q * k).sum(axis=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv_format", ERRORS)
def test_zeros_stay_zeros_and_a_token_that_is_not_finite_is_known_by_it(kv_format: KvFormat) -> None:
    k, v = np.zeros((3, 2, 8), np.float32), np.zeros((3, 2, 8), np.float32)
    k[1, 1, 3], v[2, 0, 0] = np.nan, np.inf
    got = written(kv_format, k, v)
    assert np.isnan(got[0, 1, 1]).any()
    assert not np.isfinite(got[1, 2, 0]).all()
    assert not got[0, [0, 2]].any()
    assert not got[1, :2].any()


def test_int8_is_half_of_bf16_but_for_the_scales() -> None:
    sizes = [kv_values.token_bytes(f, kv_heads=3, head_dim=64) for f in ("fp32", "bf16", "int8")]
    assert sizes == [2 * 3 * 256, 2 * 3 * 128, 2 * 3 * (64 + 4)]


def test_no_channel_passes_127_whatever_the_scale_rounds_to() -> None:
    heads = np.random.default_rng(1).standard_normal((20_000, 1, 4), np.float32)
    values, scales = kv_values.quantize(heads)
    assert np.abs(values).max() == 127
    assert np.abs(values.min(axis=-1)).max() <= 127
    assert not (scales.view(np.uint32) & 0xFFFF).any()  # bf16 numbers
