"""Which packed format each weight gets on the native backend: from how it is stored and what the user asked for.

Pure. Called by `executor.weights_pack`.
Rule of `auto`: blocks keep their numbers, code by code, wherever a packed format has their group and range; floats
become bf16; what has no exact counterpart takes the nearest one that loses least. A weight stacked of parts takes the
widest of what its parts need.

    stored              packed               exact
    Q4_0                int4 g32 symmetric   yes
    Q4_1                int4 g32 asymmetric  yes
    Q4_K                int4 g32 asymmetric  scales and mins rounded to fp16
    Q5_0, Q8_0          int8 g32 symmetric   yes
    Q5_1                int8 g32 asymmetric  yes
    Q5_K                int8 g32 asymmetric  scales and mins rounded to fp16
    Q2_K, Q3_K, Q6_K    int8 g32 symmetric   no: groups of 16 join
    F32, F16, BF16      bf16                 BF16 only

A format that is asked for is used for every matrix, whatever the file holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.core.settings import Quantization
from headrace.quant.formats import Format

PackedName = Literal["F32", "BF16", "I8", "I8G", "I4G"]

_GROUP = 32


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """How a matrix is laid out for the native kernels; `group` is 0 where scales are not per group."""

    name: PackedName
    group: int = 0
    is_asymmetric: bool = False


BF16 = PackedFormat("BF16")
INT8 = PackedFormat(
    "I8G", _GROUP
)  # activations get a scale per group too: outlier channels spoil 32, not a whole token
INT4 = PackedFormat("I4G", _GROUP, True)
_I4_SYMMETRIC = PackedFormat("I4G", _GROUP)
_I8_ASYMMETRIC = PackedFormat("I8G", _GROUP, True)

_NEAREST: dict[Format, PackedFormat] = {
    Format.F32: BF16,
    Format.F16: BF16,
    Format.BF16: BF16,
    Format.Q4_0: _I4_SYMMETRIC,
    Format.Q4_1: INT4,
    Format.Q4_K: INT4,
    Format.Q5_0: INT8,
    Format.Q8_0: INT8,
    Format.Q5_1: _I8_ASYMMETRIC,
    Format.Q5_K: _I8_ASYMMETRIC,
    Format.Q2_K: INT8,
    Format.Q3_K: INT8,
    Format.Q6_K: INT8,
}
_ASKED: dict[Quantization, PackedFormat] = {"bf16": BF16, "int8": INT8, "int4": INT4}


def choose(stored: Sequence[Format], quantization: Quantization) -> PackedFormat:
    """Return the packed format of a matrix whose parts are stored like this."""
    if quantization != "auto":
        return _ASKED[quantization]
    wanted = {_NEAREST[format] for format in stored}
    if len(wanted) == 1:
        return wanted.pop()
    if BF16 in wanted:
        return BF16
    if any(format.name == "I8G" for format in wanted):
        # A symmetric 8-bit grid holds 4 and 5-bit parts with an error far below their own.
        return INT8
    return INT4
