"""A Program as the numbers that the native step interpreter compiles: slots, weights and vectors by index.

Pure: reads the Program and the packed weights, owns nothing. Called by `executor.native`.
Invariant: every op of the Program becomes one descriptor, in order; what is optional and absent is -1 (an index) or 0
(a window or soft cap).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from headrace.model.program import Attention, Embed, Head, Linear, Norm, Op, Program, QkWrite
from headrace.ops.native.library import CPackedWeight
from headrace.ops.native.step import OP_KINDS, OpDesc, ProgramParts

Floats = NDArray[np.float32]

_EPILOGUES = {"none": 0, "add": 1, "glu": 2}
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "relu2": 3}


def glu_weights(program: Program) -> frozenset[str]:
    """Return the names of matrices and biases whose rows are gate and up."""
    names: set[str] = set()
    for op in program.ops:
        if isinstance(op, Linear) and op.epilogue == "glu":
            names.add(op.weight)
            if op.bias is not None:
                names.add(op.bias)
    return frozenset(names)


def program_parts(program: Program, packed: Mapping[str, CPackedWeight], vectors: Mapping[str, Floats]) -> ProgramParts:
    """Describe a Program. `packed` holds its matrices, `vectors` its norms and biases, by the Program's names."""
    numbers = _Numbers(program, tuple(packed), tuple(vectors))
    return ProgramParts(
        ops=[numbers.describe(op) for op in program.ops],
        slot_widths=list(program.slot_widths().values()),
        weights=list(packed.values()),
        vectors=list(vectors.values()),
        ropes=[(np.array(rope.inv_freq, np.float32), rope.scale) for rope in program.ropes],
        layers=[(layer.kv_heads, layer.head_dim) for layer in program.cache_layers],
        vocab_size=program.vocab_size,
    )


class _Numbers:
    """The index of each name."""

    def __init__(self, program: Program, matrices: tuple[str, ...], vectors: tuple[str, ...]) -> None:
        self._slots = {name: i for i, name in enumerate(program.slot_widths())}
        self._matrices = {name: i for i, name in enumerate(matrices)}
        self._vectors = {name: i for i, name in enumerate(vectors)}

    def _vector(self, name: str | None) -> int:
        return -1 if name is None else self._vectors[name]

    def describe(self, op: Op) -> OpDesc:
        """Return the descriptor of one op."""
        desc = OpDesc(
            kind=OP_KINDS.index(_kind(op)),
            src=-1,
            dst=-1,
            weight=-1,
            bias=-1,
            q_norm=-1,
            k_norm=-1,
            rope=-1,
            scale=1.0,
            sinks=-1,
        )
        if not isinstance(op, Embed):
            desc.src = self._slots[op.src]
        if not isinstance(op, Head):
            desc.dst = self._slots[op.dst]
        match op:
            case Embed():
                desc.weight, desc.scale = self._matrices[op.table], op.scale
            case Norm():
                desc.weight, desc.eps, desc.add = self._vectors[op.weight], op.eps, int(op.add)
            case Linear():
                desc.weight, desc.bias = self._matrices[op.weight], self._vector(op.bias)
                desc.epilogue, desc.activation = _EPILOGUES[op.epilogue], _ACTIVATIONS[op.activation]
            case QkWrite():
                _set_heads(desc, op)
                desc.rope = -1 if op.rope is None else op.rope
                desc.q_norm, desc.k_norm, desc.eps = self._vector(op.q_norm), self._vector(op.k_norm), op.eps
            case Attention():
                _set_heads(desc, op)
                desc.scale, desc.window, desc.softcap = op.scale, op.window or 0, op.softcap or 0.0
                desc.sinks = self._vector(op.sinks)
            case Head():
                desc.weight, desc.scale, desc.softcap = self._matrices[op.table], op.scale, op.softcap or 0.0
            case _:
                assert_never(op)
        return desc


def _set_heads(desc: OpDesc, op: QkWrite | Attention) -> None:
    """Copy the shape of an attention layer."""
    desc.layer, desc.num_heads, desc.num_kv_heads = op.layer, op.num_heads, op.num_kv_heads
    desc.head_dim = op.head_dim


def _kind(op: Op) -> str:
    """Return the descriptor's name for an op."""
    return "qk_write" if isinstance(op, QkWrite) else type(op).__name__.lower()
