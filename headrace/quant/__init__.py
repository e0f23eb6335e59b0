"""Weight formats and packed tensors."""

from __future__ import annotations

from headrace.quant.formats import Format, dequantize
from headrace.quant.tensor import Tensor

__all__ = ["Format", "Tensor", "dequantize"]
