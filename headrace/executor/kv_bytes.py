"""Where the bytes of KV blocks are: how much a block takes, and the arrays of a pool in host memory.

Owns the pool's memory. Block numbers come from the scheduler's side (`kv/`), which never sees these arrays.
Invariant: slot s of a layer is [:, s // S, s % S], whatever the element type; a block's K and V are written before they
are read, so the pool needs no clearing between owners.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.core.errors import OutOfMemory
from headrace.core.protocols import HostMemory
from headrace.core.settings import KvDtype
from headrace.core.step import BlockCopy, CopyKind
from headrace.model.program import CacheLayer
from headrace.ops import kv_values
from headrace.ops.kv_values import KvArray, KvFormat, KvShape


def kv_format(kv_dtype: KvDtype) -> KvFormat:
    """Return how the reference backend keeps K and V for a setting; auto loses nothing."""
    return "fp32" if kv_dtype == "auto" else kv_dtype


def block_bytes(layers: Sequence[CacheLayer], *, block_size: int, kv_dtype: KvDtype = "auto") -> int:
    """Return the bytes that one block takes over all layers: K and V of `block_size` tokens."""
    return sum(
        block_size * kv_values.token_bytes(kv_format(kv_dtype), kv_heads=layer.kv_heads, head_dim=layer.head_dim)
        for layer in layers
    )


def allocate_pool(
    layers: Sequence[CacheLayer], *, num_blocks: int, block_size: int, kv_dtype: KvDtype = "auto"
) -> list[KvArray]:
    """Return one array per layer (see `ops.kv_values`), untouched pages of zeros.

    Raises OutOfMemory with the sizes when the system refuses.
    """
    try:
        return [
            kv_values.zeros(
                kv_format(kv_dtype),
                num_blocks=num_blocks,
                shape=KvShape(block_size, layer.kv_heads, layer.head_dim),
            )
            for layer in layers
        ]
    except MemoryError as error:
        total = num_blocks * block_bytes(layers, block_size=block_size, kv_dtype=kv_dtype)
        raise OutOfMemory(
            f"a KV pool of {num_blocks:,} blocks of {block_size} tokens takes {total / 2**20:,.0f} MiB, "
            "more than the system gives; lower engine.kv_memory_mib"
        ) from error


def copy_blocks(pool: list[KvArray], copies: Sequence[BlockCopy], host: HostMemory | None) -> None:
    """Carry out block copies in order. A host slot holds a block's layers one after another, each as it is here."""
    for copy in copies:
        if copy.kind is CopyKind.DUPLICATE:
            for layer in pool:
                layer[:, copy.target] = layer[:, copy.source]
            continue
        if host is None:
            raise ValueError("a step copies blocks to or from host memory, and this executor was given none")
        is_save = copy.kind is CopyKind.SAVE
        block, slot = (copy.source, copy.target) if is_save else (copy.target, copy.source)
        held, at = np.frombuffer(host.slot(slot), np.uint8), 0
        needed = sum(layer[:, block].nbytes for layer in pool)
        if held.size != needed:
            raise ValueError(f"host slot {slot} has {held.size} bytes; a block has {needed}")
        for layer in pool:
            part = layer[:, block]
            kept = held[at : at + part.nbytes].view(part.dtype).reshape(part.shape)
            if is_save:
                kept[...] = part
            else:
                layer[:, block] = kept
            at += part.nbytes
