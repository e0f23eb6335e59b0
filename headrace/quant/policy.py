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

A format that is asked for is used for every matrix, whatever the file holds. int8 is the fast one: both sides of a
product are rotated (csrc/layout.h), so that one scale serves up to 256 numbers and the kernels hardly ever rescale.
Source of the rotation: QuaRot, Ashkboos et al. 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from headrace.core.settings import Quantization
from headrace.quant.formats import Format

PackedName = Literal["F32", "BF16", "I8", "I8G", "I4G", "I8R"]

_GROUP = 32
_ROTATED_GROUPS = (256, 192, 128, 64)  # longest first


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """How a matrix is laid out for the native kernels; `group` is 0 where scales are not per group."""

    name: PackedName
    group: int = 0
    is_asymmetric: bool = False


BF16 = PackedFormat("BF16")
INT4 = PackedFormat("I4G", _GROUP, True)
_INT4_LONG = {"int4-g64": PackedFormat("I4G", 64, True), "int4-g128": PackedFormat("I4G", 128, True)}
_I8_SYMMETRIC = PackedFormat("I8G", _GROUP)
_I4_SYMMETRIC = PackedFormat("I4G", _GROUP)
_I8_ASYMMETRIC = PackedFormat("I8G", _GROUP, True)

_NEAREST: dict[Format, PackedFormat] = {
    Format.F32: BF16,
    Format.F16: BF16,
    Format.BF16: BF16,
    Format.Q4_0: _I4_SYMMETRIC,
    Format.Q4_1: INT4,
    Format.Q4_K: INT4,
    Format.Q5_0: _I8_SYMMETRIC,
    Format.Q8_0: _I8_SYMMETRIC,
    Format.Q5_1: _I8_ASYMMETRIC,
    Format.Q5_K: _I8_ASYMMETRIC,
    Format.Q2_K: _I8_SYMMETRIC,
    Format.Q3_K: _I8_SYMMETRIC,
    Format.Q6_K: _I8_SYMMETRIC,
}


def rotated_int8(k: int) -> PackedFormat:
    """Return the fast int8 format of a matrix with `k` inputs: groups as long as fill its rows without more padding."""
    parts = -(-k // 64) * 64
    return PackedFormat("I8R", next(group for group in _ROTATED_GROUPS if parts % group == 0))


def choose(stored: Sequence[Format], quantization: Quantization, k: int) -> PackedFormat:
    """Return the packed format of a matrix with `k` inputs whose parts are stored like this."""
    match quantization:
        case "bf16":
            return BF16
        case "int8":
            return rotated_int8(k)
        case "int4":
            return INT4
        case "int4-g64" | "int4-g128":
            return _INT4_LONG[quantization]
        case "fp8":
            raise ValueError("fp8 has no packed format; it is a form of the cuda backend")
        case "auto":
            return _keeping(stored)
        case _:
            assert_never(quantization)


def _keeping(stored: Sequence[Format]) -> PackedFormat:
    """Return the format that loses nothing, or least."""
    wanted = {_NEAREST[format] for format in stored}
    if len(wanted) == 1:
        return wanted.pop()
    if BF16 in wanted:
        return BF16
    if any(format.name == "I8G" for format in wanted):
        # A symmetric 8-bit grid holds 4 and 5-bit parts with an error far below their own.
        return _I8_SYMMETRIC
    return INT4
