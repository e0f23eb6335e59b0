"""`Tensor`: one checkpoint tensor as stored: format, logical shape and raw bytes (usually a view of a mapped file).

Owns nothing: `data` is a read-only view; whoever made it keeps the file mapped. Decoding makes fp32 copies of just the
rows that are asked for, so a loader never holds a second copy of a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.quant.formats import Format, dequantize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stored tensor.

    shape  logical, row-major: [N] or [N, K]; block formats run along the last axis
    data   uint8 [rows, row_bytes]; rows = N for matrices, 1 for vectors
    """

    name: str
    format: Format
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def to_float(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Decode rows start … stop-1 (default: all) to fp32. Cost: one pass; allocates the result only."""
        if len(self.shape) == 1:
            return dequantize(self.format, self.data, self.shape[0]).reshape(-1)
        return dequantize(self.format, self.data[start:stop], self.shape[1])

    def take_rows(self, order: NDArray[np.int64]) -> Tensor:
        """Return the tensor with its rows in another order. Copies the bytes of this tensor."""
        return Tensor(self.name, self.format, self.shape, self.data[order])
