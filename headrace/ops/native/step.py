"""The native step interpreter: a Program described to C++ once, then one call per step.

Mirrors the structs of csrc/step.h, sample.h and kernels.h field by field; `step_library` compares their sizes with the
library's, so a library of another version is refused instead of misread.
Owns: `NativeProgram` owns one compiled program, its KV pool and its scratch memory.
Called by `executor.native` (programs, steps) and the parity tests (`ops.py`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import ConfigError, OutOfMemory
from headrace.ops.native.library import CPackedWeight, Pool, library

T = TypeVar("T")

KV_LANES = 16  # head sizes and block sizes are whole multiples of this in the cache
KV_TYPES = ("bf16", "int8")
MAX_TOP = 64  # alternatives per position at most

OP_KINDS = ("embed", "norm", "linear", "qk_write", "attention", "head")
REGION_KINDS = (
    "begin",
    "norm",
    "prepare",
    "linear",
    "qk_write",
    "attention",
    "compact",
    "head_prepare",
    "head_linear",
    "head_scan",
    "sample",
)


def _fields(kind: T, names: str) -> list[tuple[str, T]]:
    """Return struct fields of one type, in order."""
    return [(name, kind) for name in names.split()]


class OpDesc(ctypes.Structure):
    """One op; -1 where an index does not apply."""

    _fields_ = (
        *_fields(ctypes.c_int32, "kind src dst weight bias q_norm k_norm layer num_heads num_kv_heads head_dim"),
        *_fields(ctypes.c_int32, "rope window epilogue activation add sinks"),
        *_fields(ctypes.c_float, "scale eps softcap"),
    )


class RopeDesc(ctypes.Structure):
    """One rotation table."""

    _fields_ = (("inv_freq", ctypes.c_void_p), ("half", ctypes.c_int32), ("scale", ctypes.c_float))


class CacheDesc(ctypes.Structure):
    """Shape of one layer's K and V."""

    _fields_ = (("kv_heads", ctypes.c_int32), ("head_dim", ctypes.c_int32))


class ProgramDesc(ctypes.Structure):
    """A whole Program; the arrays are copied except weights and vectors."""

    _fields_ = (
        *_fields(ctypes.c_int32, "num_ops num_slots num_ropes num_layers max_tokens num_blocks block_size kv_type"),
        ("vocab", ctypes.c_int64),
        ("ops", ctypes.POINTER(OpDesc)),
        ("weights", ctypes.POINTER(CPackedWeight)),
        ("vectors", ctypes.POINTER(ctypes.c_void_p)),
        ("slot_widths", ctypes.POINTER(ctypes.c_int32)),
        ("ropes", ctypes.POINTER(RopeDesc)),
        ("layers", ctypes.POINTER(CacheDesc)),
    )


class StepIn(ctypes.Structure):
    """Addresses and sizes of one step's arrays."""

    _fields_ = (
        *_fields(ctypes.c_int32, "num_rows num_tokens num_scores table_width"),
        *_fields(ctypes.c_void_p, "rows tokens block_tables samplings bias_ids bias_values ids"),
        *_fields(ctypes.c_void_p, "scores samples scored logits"),
    )


ROW = np.dtype(
    [
        *_fields(np.int32, "num_tokens start entry num_output samples num_history prompt_len num_banned"),
        *_fields(np.int32, "window num_sinks num_evicted reserved"),
        *_fields(np.int64, "history_at banned_at"),
    ]
)
SCORE = np.dtype(_fields(np.int32, "token target num_top reserved"))
SAMPLING = np.dtype(
    [
        *_fields(np.float64, "temperature top_p min_p typical_p"),
        ("seed", np.uint64),
        *_fields(np.float32, "repetition frequency presence"),
        *_fields(np.int32, "top_k num_top num_bias"),
        ("bias_at", np.int64),
    ]
)
SAMPLE = np.dtype(
    [
        ("token", np.int32),
        ("status", np.int32),
        ("logprob", np.float64),
        ("peak", np.float32),
        ("num_top", np.int32),
        ("top_ids", np.int32, MAX_TOP),
        ("top_logprobs", np.float64, MAX_TOP),
    ]
)

BLOCK_COPY = np.dtype([*_fields(np.int32, "kind block"), ("other", np.int64)])

SAMPLED, NOT_FINITE, NOTHING_LEFT, UNKNOWN_TOKEN = range(4)  # SAMPLE.status
_STEP_FAULTS = {
    1: "more tokens than the executor was made for",
    2: "a row's tokens have no place in its blocks",
}


class KvLayer(ctypes.Structure):
    """KV cache of one layer; see csrc/kernels.h for the layout inside a block."""

    _fields_ = (
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("block_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        *_fields(ctypes.c_int32, "block_size kv_heads head_dim dim type reserved"),
    )


KV_SLOT = np.dtype(_fields(np.int32, "block offset clears_tail"))


class QkWriteArgs(ctypes.Structure):
    """Arguments of the head norm, rotation and KV write."""

    _fields_ = (
        ("src", ctypes.c_void_p),
        ("ld_src", ctypes.c_int64),
        ("dst", ctypes.c_void_p),
        ("ld_dst", ctypes.c_int64),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("half", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("kv", ctypes.POINTER(KvLayer)),
        ("slots", ctypes.c_void_p),
    )


class AttentionArgs(ctypes.Structure):
    """Arguments of attention that all items share."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        ("ldq", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("ldo", ctypes.c_int64),
        ("kv", ctypes.POINTER(KvLayer)),
        ("group", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("half", ctypes.c_int32),
        *_fields(ctypes.c_void_p, "sink_logits turn_cos turn_sin"),
    )


class AttentionItem(ctypes.Structure):
    """Some (token, head) pairs of one sequence and kv head."""

    _fields_ = (
        ("blocks", ctypes.c_void_p),
        *_fields(ctypes.c_int32, "token0 pos0 kv_head first last chunk window num_sinks num_evicted reserved"),
        ("partial", ctypes.c_void_p),
    )


class SampleContext(ctypes.Structure):
    """What one row's draw depends on beside its logits."""

    _fields_ = (
        ("sampling", ctypes.c_void_p),
        ("bias_ids", ctypes.c_void_p),
        ("bias_values", ctypes.c_void_p),
        ("history", ctypes.c_void_p),
        ("num_history", ctypes.c_int64),
        ("prompt_len", ctypes.c_int64),
        ("banned", ctypes.c_void_p),
        ("num_banned", ctypes.c_int64),
        ("num_output", ctypes.c_uint32),
    )


def kv_head_bytes(kv_type: str, *, block_size: int, head_dim: int) -> int:
    """Return the bytes of K, or of V, of one kv head in one block; see csrc/kernels.h."""
    dim = -(-head_dim // KV_LANES) * KV_LANES
    return block_size * (dim + 2) if kv_type == "int8" else block_size * dim * 2


def _sizes() -> list[int]:
    """Return the bytes of the mirrored structs in the order of `hr_step_layout`."""
    return [
        ctypes.sizeof(OpDesc),
        ctypes.sizeof(RopeDesc),
        ctypes.sizeof(CacheDesc),
        ctypes.sizeof(ProgramDesc),
        ctypes.sizeof(CPackedWeight),
        ROW.itemsize,
        SCORE.itemsize,
        ctypes.sizeof(StepIn),
        SAMPLING.itemsize,
        SAMPLE.itemsize,
        ctypes.sizeof(KvLayer),
        KV_SLOT.itemsize,
        ctypes.sizeof(QkWriteArgs),
        ctypes.sizeof(AttentionArgs),
        ctypes.sizeof(AttentionItem),
        ctypes.sizeof(SampleContext),
        BLOCK_COPY.itemsize,
    ]


@cache
def step_library() -> ctypes.CDLL:
    """Return the library with the functions of capi_step.cpp declared.

    Raises ConfigError when there is no library, or it was built from other sources.
    """
    lib = library()
    pointer, i32, i64, f32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
    signatures: dict[str, tuple[object, list[object]]] = {
        "hr_step_layout": (None, [pointer]),
        "hr_program_new": (pointer, [ctypes.POINTER(ProgramDesc), pointer]),
        "hr_program_free": (None, [pointer]),
        "hr_step": (i32, [pointer, ctypes.POINTER(StepIn)]),
        "hr_program_sizes": (None, [pointer, pointer]),
        "hr_block_bytes": (i64, [pointer]),
        "hr_copy_blocks": (i32, [pointer, pointer, i64]),
        "hr_program_times": (None, [pointer, i32, pointer]),
        "hr_rms_norm": (None, [pointer, pointer, f32, i64, i64, i32, pointer]),
        "hr_qk_write": (None, [ctypes.POINTER(QkWriteArgs), i64]),
        "hr_attention": (i32, [ctypes.POINTER(AttentionArgs), ctypes.POINTER(AttentionItem), i64]),
        "hr_attention_merge": (None, [ctypes.POINTER(AttentionArgs), ctypes.POINTER(AttentionItem), pointer, i32]),
        "hr_finish_logits": (None, [pointer, i64, f32, f32]),
        "hr_sample_row": (None, [pointer, i64, ctypes.POINTER(SampleContext), pointer]),
        "hr_score_row": (None, [pointer, i64, i32, i32, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name, None)
        if function is None:
            raise ConfigError(f"the native library lacks {name}; rebuild it with `python setup.py build_native`")
        function.restype = result
        function.argtypes = arguments
    ours = _sizes()
    theirs = np.zeros(len(ours), np.int32)
    lib.hr_step_layout(theirs.ctypes.data)
    if theirs.tolist() != ours:
        raise ConfigError(
            "the native library was built from other sources than this package; "
            "rebuild it with `python setup.py build_native`"
        )
    return lib


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramParts:
    """A Program as numbers: ops name slots, weights, vectors and ropes by index."""

    ops: Sequence[OpDesc]
    slot_widths: Sequence[int]
    weights: Sequence[CPackedWeight]
    vectors: Sequence[NDArray[np.float32]]
    ropes: Sequence[tuple[NDArray[np.float32], float]]  # inv_freq, scale
    layers: Sequence[tuple[int, int]]  # kv heads, head size
    vocab_size: int


class NativeProgram:
    """One compiled Program with its KV pool. For one thread at a time; `close` frees it."""

    def __init__(
        self,
        pool: Pool,
        parts: ProgramParts,
        *,
        num_blocks: int,
        block_size: int,
        max_tokens: int,
        kv_type: str = "bf16",
    ) -> None:
        """Compile. The pool must outlive the program; kv_type is one of KV_TYPES.

        Raises OutOfMemory when the KV pool and scratch memory cannot be had.
        """
        self._lib = step_library()
        self._pool = pool
        self._parts = parts  # keeps the arrays alive
        self._weights = (CPackedWeight * max(len(parts.weights), 1))(*parts.weights)
        self._vectors = (ctypes.c_void_p * max(len(parts.vectors), 1))(*(v.ctypes.data for v in parts.vectors))
        desc = ProgramDesc(
            num_ops=len(parts.ops),
            num_slots=len(parts.slot_widths),
            num_ropes=len(parts.ropes),
            num_layers=len(parts.layers),
            max_tokens=max_tokens,
            num_blocks=num_blocks,
            block_size=block_size,
            kv_type=KV_TYPES.index(kv_type),
            vocab=parts.vocab_size,
            ops=(OpDesc * len(parts.ops))(*parts.ops),
            weights=self._weights,
            vectors=ctypes.cast(self._vectors, ctypes.POINTER(ctypes.c_void_p)),
            slot_widths=(ctypes.c_int32 * len(parts.slot_widths))(*parts.slot_widths),
            ropes=(RopeDesc * max(len(parts.ropes), 1))(*(RopeDesc(f.ctypes.data, len(f), s) for f, s in parts.ropes)),
            layers=(CacheDesc * max(len(parts.layers), 1))(*(CacheDesc(*layer) for layer in parts.layers)),
        )
        self._handle: int | None = self._lib.hr_program_new(ctypes.byref(desc), pool.handle)
        if not self._handle:
            raise OutOfMemory(
                f"the system refuses the memory for {num_blocks:,} KV blocks of {block_size} tokens and steps of "
                f"{max_tokens:,} tokens; lower engine.kv_memory_mib or engine.max_step_tokens"
            )

    def run(self, step: StepIn) -> None:
        """Run one step; the results are in the arrays it points to. ValueError for a step that does not fit."""
        fault: int = self._lib.hr_step(self._handle, ctypes.byref(step))
        if fault:
            raise ValueError(f"the step cannot be run: {_STEP_FAULTS.get(fault, f'fault {fault}')}")

    def block_bytes(self) -> int:
        """Return the bytes of one KV block over all layers."""
        size: int = self._lib.hr_block_bytes(self._handle)
        return size

    def copy_blocks(self, copies: NDArray[np.void]) -> None:
        """Carry out copies [n] of BLOCK_COPY, in order. ValueError, and nothing done, for a block outside the pool."""
        if self._lib.hr_copy_blocks(self._handle, copies.ctypes.data, len(copies)):
            raise ValueError("a copy names a block outside the KV pool")

    def sizes(self) -> Mapping[str, int]:
        """Return kv_bytes, scratch_bytes and num_regions."""
        out = np.zeros(3, np.int64)
        self._lib.hr_program_sizes(self._handle, out.ctypes.data)
        return dict(zip(("kv_bytes", "scratch_bytes", "num_regions"), out.tolist(), strict=True))

    def times(self, *, on: bool) -> dict[str, int]:
        """Switch per-region timing; return the nanoseconds by kind since the last call."""
        out = np.zeros(len(REGION_KINDS), np.int64)
        self._lib.hr_program_times(self._handle, int(on), out.ctypes.data)
        return dict(zip(REGION_KINDS, out.tolist(), strict=True))

    def close(self) -> None:
        """Free program and KV pool. Idempotent."""
        if self._handle:
            self._lib.hr_program_free(self._handle)
            self._handle = None
