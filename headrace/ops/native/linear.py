"""Packed linear layers: `WeightShape`, `PackedMatrix` (bytes in the engine's layout) and single products on them.

A PackedMatrix owns its bytes or borrows them from a mapped file; they are 64-byte aligned and never change once packed.
Every product here is the same native code the whole step runs: this is the debug mode and the subject of parity tests.
Layouts and rounding rules are stated in csrc/layout.h and csrc/pack.h.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headrace.ops.native.library import CPackedWeight, Pool, library

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Epilogue = Literal["none", "add", "glu"]

_EPILOGUES: tuple[Epilogue, ...] = ("none", "add", "glu")
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu2")
ALIGNMENT = 64
BLOCK_COLUMNS = 32
TILE_COLUMNS = 16


class WeightFormat(IntEnum):
    """How weights are stored. I8: per channel; I8G, I4G: in groups along K; I8R: rotated, in long groups."""

    F32 = 0
    BF16 = 1
    I8 = 2
    I8G = 3
    I4G = 4
    I8R = 5


class Source(IntEnum):
    """What a source row holds; the numbers are GGUF's. `pack` takes its bytes as they lie in the file."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    BF16 = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightShape:
    """Format and logical shape [n, k] of a packed weight.

    group        32, 64 or 128 for I8G and I4G; a multiple of 64 up to 256 for I8R; else 0
    asymmetric   a bias per group beside the scale
    interleaved  a gate+up weight for the `glu` epilogue: n/2 gate rows, then n/2 up rows
    """

    format: WeightFormat
    n: int
    k: int
    group: int = 0
    asymmetric: bool = False
    interleaved: bool = False

    def describe(self, base: int = 0) -> CPackedWeight:
        """Return the C struct for bytes at address `base`."""
        return CPackedWeight(self.format, self.group, self.asymmetric, self.interleaved, self.n, self.k, base)

    @property
    def packed_bytes(self) -> int:
        """Bytes in the engine's layout. Raises ValueError for a shape that has none."""
        size = int(library().hr_packed_bytes(ctypes.byref(self.describe())))
        if size < 0:
            raise ValueError(f"no packed layout for {self}")
        return size

    @property
    def num_blocks(self) -> int:
        """Blocks of 32 packed columns: the unit in which weights are packed and shared among threads."""
        return int(library().hr_packed_blocks(ctypes.byref(self.describe())))

    def can_pack(self, source: Source) -> bool:
        """True if rows of `source` can be packed so; block formats only into the shape that keeps their codes."""
        return bool(library().hr_can_pack(source, ctypes.byref(self.describe())))


def aligned_bytes(size: int) -> Bytes:
    """Allocate `size` bytes that start on a 64-byte boundary."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def exact_shape(source: Source, n: int, k: int, *, interleaved: bool = False) -> WeightShape | None:
    """Return the shape that keeps the codes of a GGUF block format; None for formats that have to be rounded."""
    match source:
        case Source.Q4_0:
            return WeightShape(format=WeightFormat.I4G, n=n, k=k, group=32, interleaved=interleaved)
        case Source.Q4_1 | Source.Q4_K:
            return WeightShape(format=WeightFormat.I4G, n=n, k=k, group=32, asymmetric=True, interleaved=interleaved)
        case Source.Q5_0 | Source.Q8_0:
            return WeightShape(format=WeightFormat.I8G, n=n, k=k, group=32, interleaved=interleaved)
        case Source.Q5_1 | Source.Q5_K:
            return WeightShape(format=WeightFormat.I8G, n=n, k=k, group=32, asymmetric=True, interleaved=interleaved)
        case Source.F32 | Source.F16 | Source.BF16:
            return None


class PackedMatrix:
    """A weight in the engine's layout."""

    def __init__(self, shape: WeightShape, data: Bytes | None = None) -> None:
        """Wrap `data` (shape.packed_bytes long, 64-byte aligned), or allocate room to be packed into."""
        self.shape = shape
        self.data = aligned_bytes(shape.packed_bytes) if data is None else data
        if self.data.nbytes != shape.packed_bytes:
            raise ValueError(f"{self.data.nbytes} bytes given for {shape}, which takes {shape.packed_bytes}")
        if self.data.ctypes.data % ALIGNMENT:
            raise ValueError(f"packed weights must be {ALIGNMENT}-byte aligned")
        self.struct = shape.describe(self.data.ctypes.data)

    def pack(
        self, pool: Pool, source: Source, rows: Bytes | Floats, up: Bytes | Floats | None = None, *, block: int = 0
    ) -> int:
        """Pack source rows from block `block` on; return the block after the last one filled.

        rows  [rows, row bytes] or fp32 [rows, k]: 32 rows per block, fewer only at the end of the weight
        up    for an interleaved weight: `rows` holds 16 gate rows per block and `up` the up rows of the same blocks
        """
        width = TILE_COLUMNS if self.shape.interleaved else BLOCK_COLUMNS
        end = block + -(-len(rows) // width)
        limit = self.shape.n // 2 if self.shape.interleaved else self.shape.n
        if len(rows) != min(end * width, limit) - block * width or (up is not None and len(up) != len(rows)):
            raise ValueError(f"{len(rows)} rows given for blocks {block} to {end} of {self.shape}")
        flat = np.ascontiguousarray(rows)
        flat_up = None if up is None else np.ascontiguousarray(up)
        addresses = flat.ctypes.data, None if flat_up is None else flat_up.ctypes.data
        _check(library().hr_pack(pool.handle, ctypes.byref(self.struct), source, *addresses, block, end), self.shape)
        return end

    @classmethod
    def from_float(cls, pool: Pool, shape: WeightShape, weight: Floats) -> PackedMatrix:
        """Pack an fp32 [n, k] matrix, rounding to nearest."""
        packed = cls(shape)
        weight = np.ascontiguousarray(weight, np.float32)
        half = shape.n // 2
        if shape.interleaved:
            packed.pack(pool, Source.F32, weight[:half], weight[half:])
        else:
            packed.pack(pool, Source.F32, weight)
        return packed

    def to_float(self, start: int = 0, stop: int | None = None) -> Floats:
        """Decode logical rows start … stop-1 (default: all) to fp32 [rows, k]."""
        stop = self.shape.n if stop is None else stop
        out = np.empty((stop - start, self.shape.k), np.float32)
        _check(library().hr_unpack(ctypes.byref(self.struct), start, stop, out.ctypes.data), self.shape)
        return out


def act_bytes(shape: WeightShape, rows: int) -> int:
    """Bytes of the prepared activations of `rows` rows."""
    return int(library().hr_act_bytes(ctypes.byref(shape.describe()), rows))


def prepare(shape: WeightShape, x: Floats) -> Bytes:
    """Return x [m, k] rounded or quantized as the products read it: m records of equal size."""
    acts = aligned_bytes(act_bytes(shape, len(x)))
    stride = x.strides[0] // 4
    _check(library().hr_prepare(ctypes.byref(shape.describe()), x.ctypes.data, stride, len(x), acts.ctypes.data), shape)
    return acts


def linear(
    pool: Pool,
    weight: PackedMatrix,
    x: Floats,
    *,
    bias: Floats | None = None,
    epilogue: Epilogue = "none",
    activation: str = "silu",
    out: Floats | None = None,
    repeats: int = 1,
) -> Floats:
    """Multiply x [m, k] by the weight: out [m, n] = x @ w.T + bias; `add` adds to `out`; `glu` gives [m, n/2].

    x, out   fp32, rows contiguous; rows may be strided
    bias     [n]; for `glu` in the weight's interleaved order, see `interleave_bias`
    repeats  do the same that often in one wake of the pool; for measuring
    """
    shape = weight.shape
    width = shape.n // 2 if epilogue == "glu" else shape.n
    if out is None:
        out = np.zeros((len(x), width), np.float32)
    if x.shape[1] != shape.k or out.shape != (len(x), width) or x.strides[1] != 4 or out.strides[1] != 4:
        raise ValueError(f"x {x.shape} and out {out.shape} do not fit {shape} with epilogue '{epilogue}'")
    acts = aligned_bytes(act_bytes(shape, len(x)))
    code = library().hr_linear(
        pool.handle,
        ctypes.byref(weight.struct),
        x.ctypes.data,
        x.strides[0] // 4,
        len(x),
        acts.ctypes.data,
        out.ctypes.data,
        out.strides[0] // 4,
        None if bias is None else bias.ctypes.data,
        _EPILOGUES.index(epilogue),
        ACTIVATIONS.index(activation),
        repeats,
    )
    _check(code, shape)
    return out


def interleave_bias(bias: Floats) -> Floats:
    """Order a gate+up bias [2F] as an interleaved weight's columns: 16 gate, 16 up, …, each part padded to 16."""
    half = len(bias) // 2
    padded = np.zeros((2, -(-half // TILE_COLUMNS) * TILE_COLUMNS), np.float32)
    padded[:, :half] = bias.reshape(2, half)
    return np.ascontiguousarray(padded.reshape(2, -1, TILE_COLUMNS).transpose(1, 0, 2)).reshape(-1)


def _check(code: int, shape: WeightShape) -> None:
    """Turn an error code of the C ABI into a ValueError: such a call is a bug of the caller."""
    if code:
        reason = {1: "an argument is out of range", 2: "a buffer is not 64-byte aligned", 3: "not available"}[code]
        raise ValueError(f"native linear layer refused {shape}: {reason}")
