"""What the tests of native attention share: layers of every shape, window, cap and sink."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.core.request import Reach

KV_TYPES = ("bf16", "int8")


class Case(NamedTuple):
    """Shape and mask of one attention layer."""

    num_heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    window: int | None = None
    softcap: float | None = None
    reach: Reach | None = None
    has_sink_logits: bool = False

    @property
    def inv_freq(self) -> NDArray[np.float32]:
        """Part of the channels is rotated."""
        half = max(self.head_dim // 4, 1)
        return (100.0 ** (-np.arange(half) / half)).astype(np.float32)

    @property
    def sinks(self) -> NDArray[np.float32] | None:
        return np.linspace(-2.0, 3.0, self.num_heads, dtype=np.float32) if self.has_sink_logits else None


CASES = (
    Case(9, 3, 64, 32),
    Case(4, 1, 256, 16, window=40),
    Case(4, 1, 256, 16, window=512),
    Case(4, 4, 8, 16, softcap=5.0),
    Case(8, 2, 128, 32, window=100, softcap=50.0),
    Case(6, 2, 80, 48),
    Case(3, 3, 96, 64, window=1),
    Case(9, 3, 64, 32, reach=Reach(window=60, num_sinks=4)),
    Case(8, 2, 128, 16, reach=Reach(window=600, num_sinks=70), softcap=5.0, has_sink_logits=True),
    Case(4, 1, 80, 48, reach=Reach(window=33)),
    Case(4, 2, 64, 32, window=50, reach=Reach(window=128, num_sinks=4)),
    Case(4, 2, 64, 32, window=300, reach=Reach(window=128, num_sinks=4), has_sink_logits=True),
)
