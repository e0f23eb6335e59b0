"""Norms, rotation, KV writes and logit scans of every instruction set against the numpy specification."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.ops import kv_values, reference
from headrace.ops.kv_values import KvShape
from tests.parity.native_drive import ISAS, forced, needs_native

pytestmark = needs_native
ops = pytest.importorskip("headrace.ops.native.ops", reason="no native library")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 3, 16, 31, 64, 576, 577])
def test_rms_norm_matches_the_reference(isa: str, width: int) -> None:
    random = np.random.default_rng(width)
    x = random.standard_normal((5, width), np.float32)
    weight = random.standard_normal(width, np.float32)
    residual = random.standard_normal((5, width), np.float32)
    expected = reference.rms_norm(x, weight, eps=1e-5)
    with forced(isa):
        np.testing.assert_allclose(ops.rms_norm(x, weight, eps=1e-5), expected, rtol=1e-5, atol=1e-6)
        added = ops.rms_norm(x, weight, eps=1e-5, add_to=residual)
    np.testing.assert_allclose(added, residual + expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("num_heads", "kv_heads", "head_dim", "rotary_dim", "has_norms"),
    [(9, 3, 64, 64, False), (4, 1, 256, 256, True), (4, 2, 24, 24, True), (2, 2, 8, 4, False), (3, 1, 80, 0, True)],
)
def test_qk_write_matches_the_reference(
    isa: str, num_heads: int, kv_heads: int, head_dim: int, rotary_dim: int, has_norms: bool
) -> None:
    random = np.random.default_rng(head_dim)
    num_tokens, block_size, num_blocks = 37, 16, 5
    qkv = random.standard_normal((num_tokens, (num_heads + 2 * kv_heads) * head_dim), np.float32)
    slots = random.permutation(num_blocks * block_size)[:num_tokens]
    positions = random.integers(0, 5000, num_tokens).astype(np.int32)
    inv_freq = (10000.0 ** (-np.arange(rotary_dim // 2) / max(rotary_dim // 2, 1))).astype(np.float32)
    norms = random.standard_normal((2, head_dim), np.float32) if has_norms else (None, None)
    angles = positions.astype(np.float32)[:, None] * inv_freq
    expected_cache = np.zeros((2, num_blocks, block_size, kv_heads, head_dim), np.float32)
    expected = reference.qk_write(
        qkv,
        expected_cache,
        slots,
        positions,
        num_heads=num_heads,
        inv_freq=inv_freq if rotary_dim else None,
        q_norm=norms[0],
        k_norm=norms[1],
    )
    cache = ops.PagedCache(num_blocks=num_blocks, block_size=block_size, kv_heads=kv_heads, head_dim=head_dim)
    with forced(isa):
        q = ops.qk_write(
            qkv,
            cache,
            slots,
            num_heads=num_heads,
            cos=np.cos(angles) if rotary_dim else None,
            sin=np.sin(angles) if rotary_dim else None,
            q_norm=norms[0],
            k_norm=norms[1],
        )
    np.testing.assert_allclose(q, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cache.unpack(), expected_cache, rtol=2**-8, atol=1e-6)  # bf16: 8 bits of mantissa


@pytest.mark.parametrize("isa", ISAS)
def test_the_last_token_of_a_fresh_block_clears_what_another_sequence_left_behind_it(isa: str) -> None:
    cache = ops.PagedCache(num_blocks=2, block_size=32, kv_heads=1, head_dim=16)
    cache.spoil()
    qkv = np.ones((3, 48), np.float32)
    with forced(isa):
        ops.qk_write(
            qkv, cache, np.arange(3), num_heads=1, cos=None, sin=None, clears_tail=np.array([False, False, True])
        )
    values = cache.unpack()[1]
    assert np.all(values[0, :3] == 1.0)
    assert np.all(values[0, 3:] == 0.0)
    assert np.all(np.isnan(values[1]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(3, 64), (1, 256), (2, 24), (2, 8), (1, 80)])
def test_int8_kv_has_the_references_integers_and_scales(isa: str, kv_heads: int, head_dim: int) -> None:
    random = np.random.default_rng(head_dim)
    num_tokens, block_size, num_blocks = 61, 16, 5
    qkv = random.standard_normal((num_tokens, 3 * kv_heads * head_dim), np.float32)
    qkv *= np.exp(random.uniform(-12, 12, (num_tokens, 1))).astype(np.float32)
    qkv[7], qkv[8, ::3], qkv[9] = 0.0, 1e-33, 1e-33  # all zeros; zeros to 8 bits; too small for a scale
    qkv[11, -1], qkv[12, -2] = np.nan, np.inf  # in V of the last kv head
    qkv[13] = np.float32(127.0)
    slots = random.permutation(num_blocks * block_size)[:num_tokens]
    expected = kv_values.zeros("int8", num_blocks=num_blocks, shape=KvShape(block_size, kv_heads, head_dim))
    reference.qk_write(qkv, expected, slots, np.zeros(num_tokens, np.int32), num_heads=kv_heads, inv_freq=None)
    cache = ops.PagedCache(
        num_blocks=num_blocks, block_size=block_size, kv_heads=kv_heads, head_dim=head_dim, kv_type="int8"
    )
    with forced(isa):
        ops.qk_write(qkv, cache, slots, num_heads=kv_heads, cos=None, sin=None)
    values, scales = cache.unpack_int8()
    np.testing.assert_array_equal(scales[..., 0], expected["scale"])
    is_number = ~np.isnan(scales[..., 0])
    assert (~is_number).sum() == 2
    np.testing.assert_array_equal(values[is_number], expected["value"][is_number])


@pytest.mark.parametrize("isa", ISAS)
def test_the_last_token_of_a_fresh_int8_block_clears_the_scales_behind_it(isa: str) -> None:
    cache = ops.PagedCache(num_blocks=2, block_size=32, kv_heads=1, head_dim=16, kv_type="int8")
    cache.spoil()
    with forced(isa):
        ops.qk_write(
            np.ones((3, 48), np.float32),
            cache,
            np.arange(3),
            num_heads=1,
            cos=None,
            sin=None,
            clears_tail=np.array([False, False, True]),
        )
    values = cache.unpack()[1]
    np.testing.assert_allclose(values[0, :3], 1.0, rtol=2**-7)
    assert np.all(values[0, 3:] == 0.0)
    assert np.all(np.isnan(values[1]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 15, 16, 1003])
def test_soft_capped_logits_match_the_reference(isa: str, size: int) -> None:
    logits = np.random.default_rng(size).standard_normal(size, np.float32) * 40
    with forced(isa):
        scaled = ops.finish_logits(logits, scale=0.25)
        capped = ops.finish_logits(logits, scale=0.5, softcap=30.0)
    np.testing.assert_array_equal(scaled, logits * np.float32(0.25))
    np.testing.assert_allclose(capped, 30.0 * np.tanh(logits * 0.5 / 30.0), rtol=2e-6, atol=1e-6)
