"""The native CPU engine's binding: the library built from csrc/, loaded with ctypes.

Owns: nothing at import; the library is loaded when first asked for, so a machine without it can still import this.
`library` loads it and chooses instruction set and threads; `linear` is packed weights and single products.
Called by the executor, benchmarks and tests.
"""

from __future__ import annotations

from headrace.ops.native.library import Pool, active_isa, available_isas, load_failure, set_isa
from headrace.ops.native.linear import PackedMatrix, Source, WeightFormat, WeightShape, exact_shape

__all__ = [
    "PackedMatrix",
    "Pool",
    "Source",
    "WeightFormat",
    "WeightShape",
    "active_isa",
    "available_isas",
    "exact_shape",
    "load_failure",
    "set_isa",
]
