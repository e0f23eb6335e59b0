"""Norms, rotation and cache writes against the reference ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headrace.ops import kv_values, reference
from headrace.ops.cuda.norm import Following, rms_norm, rms_norm_add
from headrace.ops.cuda.rope import Rotation, qk_write

KINDS = [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]


def drawn(device: str, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32)).to(device)


@pytest.mark.parametrize(("kind", "error"), KINDS)
@pytest.mark.parametrize("width", [64, 576, 2048])
def test_a_norm_is_the_reference_norm(device: str, kind: torch.dtype, error: float, width: int) -> None:
    x, weight = drawn(device, 3, width) * 7, drawn(device, width, seed=1)
    out = torch.full((3, width), torch.nan, dtype=kind, device=device)
    rms_norm(x, weight, out, eps=1e-5)
    expected = reference.rms_norm(x.cpu().numpy(), weight.cpu().numpy(), eps=1e-5)
    np.testing.assert_allclose(out.float().cpu().numpy(), expected, rtol=error, atol=error)


def test_a_closing_norm_adds_to_the_stream_and_feeds_the_next(device: str) -> None:
    x, y = drawn(device, 3, 96), drawn(device, 3, 96, seed=1)
    first, second = drawn(device, 96, seed=2), drawn(device, 96, seed=3)
    total = x.cpu().numpy() + reference.rms_norm(y.cpu().numpy(), first.cpu().numpy(), eps=1e-6)
    out = torch.full((3, 96), torch.nan, device=device)
    rms_norm_add(y, first, x, eps=1e-6, following=Following(second, out, 1e-5))
    np.testing.assert_allclose(x.cpu().numpy(), total, rtol=2e-6, atol=2e-6)
    expected = reference.rms_norm(total, second.cpu().numpy(), eps=1e-5)
    np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("kind", "error"), KINDS)
@pytest.mark.parametrize(("head_dim", "rotary", "norms"), [(16, 16, ""), (80, 32, "qk"), (64, 64, "k"), (96, 0, "q")])
def test_q_k_v_are_normed_rotated_and_written(
    device: str, kind: torch.dtype, error: float, head_dim: int, rotary: int, norms: str
) -> None:
    heads, kv_heads, block_size, blocks = 4, 2, 8, 5
    qkv = drawn(device, 6, (heads + 2 * kv_heads) * head_dim).to(kind)
    weights = {name: drawn(device, head_dim, seed=5 + i) for i, name in enumerate("qk") if name in norms}
    inv_freq = None if not rotary else torch.from_numpy(10000.0 ** -(np.arange(0, rotary, 2) / rotary)).float()
    slots = torch.tensor([39, 3, 17, 8, 0, 31], dtype=torch.int32, device=device)
    positions = torch.tensor([0, 1, 2, 700, 40, 3], dtype=torch.int32, device=device)
    cache = torch.zeros((blocks, 2, kv_heads, block_size, head_dim), dtype=kind, device=device)
    out = torch.full((6, heads * head_dim), torch.nan, dtype=kind, device=device)
    rotation = Rotation(
        inv_freq=None if inv_freq is None else inv_freq.to(device),
        scale=1.25,
        q_norm=weights.get("q"),
        k_norm=weights.get("k"),
        eps=1e-6,
    )
    qk_write(qkv, out, cache, slots, positions, rotation)
    kept = kv_values.zeros("fp32", num_blocks=blocks, shape=kv_values.KvShape(block_size, kv_heads, head_dim))
    expected = reference.qk_write(
        qkv.float().cpu().numpy(),
        kept,
        slots.cpu().numpy().astype(np.int64),
        positions.cpu().numpy(),
        num_heads=heads,
        inv_freq=None if inv_freq is None else inv_freq.numpy(),
        rope_scale=1.25,
        q_norm=weights["q"].cpu().numpy() if "q" in weights else None,
        k_norm=weights["k"].cpu().numpy() if "k" in weights else None,
    )
    np.testing.assert_allclose(out.float().cpu().numpy(), expected, rtol=error, atol=max(error, 2e-4))
    written = cache.float().cpu().numpy().transpose(1, 0, 3, 2, 4)
    np.testing.assert_allclose(written, kept, rtol=error, atol=max(error, 2e-4))
