"""Sizes and shapes of the KV pool."""

from __future__ import annotations

from headrace.executor import block_bytes
from headrace.executor.kv_bytes import allocate_pool
from headrace.model.program import CacheLayer

LAYERS = (CacheLayer(kv_heads=2, head_dim=8), CacheLayer(kv_heads=1, head_dim=16), CacheLayer(kv_heads=3, head_dim=8))


def test_a_block_takes_what_its_arrays_take() -> None:
    pool = allocate_pool(LAYERS, num_blocks=5, block_size=4)
    assert sum(layer.nbytes for layer in pool) == 5 * block_bytes(LAYERS, block_size=4)


def test_each_layer_has_its_own_shape() -> None:
    pool = allocate_pool(LAYERS, num_blocks=5, block_size=4)
    assert [layer.shape for layer in pool] == [(2, 5, 4, 2, 8), (2, 5, 4, 1, 16), (2, 5, 4, 3, 8)]
