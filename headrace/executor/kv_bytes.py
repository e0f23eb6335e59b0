"""Where the bytes of KV blocks are: how much a block takes, and the arrays of a pool in host memory.

Owns the pool's memory. Block numbers come from the scheduler's side (`kv/`), which never sees these arrays.
Invariant: slot s of a layer is [:, s // S, s % S]; a block's K and V are written before they are read, so the pool
needs no clearing between owners.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import OutOfMemory
from headrace.core.protocols import HostMemory
from headrace.core.step import BlockCopy, CopyKind
from headrace.model.program import CacheLayer


def block_bytes(layers: Sequence[CacheLayer], *, block_size: int, element_bytes: int) -> int:
    """Return the bytes that one block takes over all layers: K and V of `block_size` tokens."""
    return sum(2 * block_size * layer.kv_heads * layer.head_dim * element_bytes for layer in layers)


def allocate_pool(layers: Sequence[CacheLayer], *, num_blocks: int, block_size: int) -> list[NDArray[np.float32]]:
    """Return one fp32 array [2, num_blocks, block_size, kv_heads, head_dim] per layer, untouched pages of zeros.

    Raises OutOfMemory with the sizes when the system refuses.
    """
    try:
        return [np.zeros((2, num_blocks, block_size, layer.kv_heads, layer.head_dim), np.float32) for layer in layers]
    except MemoryError as error:
        total = num_blocks * block_bytes(layers, block_size=block_size, element_bytes=4)
        raise OutOfMemory(
            f"a KV pool of {num_blocks:,} blocks of {block_size} tokens takes {total / 2**20:,.0f} MiB, "
            "more than the system gives; lower engine.kv_memory_mib"
        ) from error


def copy_blocks(pool: list[NDArray[np.float32]], copies: Sequence[BlockCopy], host: HostMemory | None) -> None:
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
        floats = np.frombuffer(host.slot(slot), np.float32)
        at = 0
        for layer in pool:
            part = layer[:, block]
            kept = floats[at : at + part.size].reshape(part.shape)
            if is_save:
                kept[...] = part
            else:
                layer[:, block] = kept
            at += part.size
        if at != floats.size:
            raise ValueError(f"host slot {slot} has {4 * floats.size} bytes; a block has {4 * at}")
