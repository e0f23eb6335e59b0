"""A checkpoint's weights, straight from its mapped files into device layouts.

Owns nothing: what is made belongs to the caller. Called by `executor.cuda.executor`, and for sizes by `memory`.
Invariant: beside the result at most one slab of _SLAB_ROWS rows exists in fp32, however large the matrix.
What stays exactly what the file says: BF16; Q4_0 and Q4_1 (int4, groups of 32); Q5_0 and Q8_0 (int8, groups of 32).
Q4_K too (int4), but for its scales, which are rounded to fp16. Other block formats are decoded and rounded again to
the form that `quant.policy` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.errors import ModelFileBroken
from headrace.core.settings import Quantization
from headrace.executor.cuda.forms import FormChoice, choose_form
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program, WeightSpec
from headrace.ops.cuda import weights as forms
from headrace.ops.cuda.weights import Weight
from headrace.quant.formats import Format
from headrace.quant.superblocks import split_q4_k
from headrace.quant.tensor import Tensor

_SLAB_ROWS = 4096


def load_weights(
    program: Program,
    checkpoint: Checkpoint,
    *,
    quantization: Quantization,
    dtype: torch.dtype,
    device: torch.device,
    advance: Callable[[float], None] = lambda done: None,
) -> tuple[dict[str, Weight], dict[str, torch.Tensor]]:
    """Return matrices and fp32 vectors by name.

    advance  hears which share of the weights is there, 0 to 1
    Raises ModelFileBroken when a tensor is missing or has another shape.
    """
    matrices: dict[str, Weight] = {}
    vectors: dict[str, torch.Tensor] = {}
    num_all = sum(int(np.prod(spec.shape)) for spec in program.weights)
    num_done = 0
    for spec in program.weights:
        parts = [checkpoint.tensor(part) for part in spec.parts]
        _check_shape(spec, parts)
        if len(spec.shape) == 1:
            values = np.concatenate([part.to_float() for part in parts]) + np.float32(spec.offset)
            vectors[spec.name] = torch.from_numpy(values).to(device)
        else:
            choice = choose_form([part.format for part in parts], quantization, spec.shape[1])
            slabs = [_slab(piece, choice, spec.offset, dtype, device) for piece in _slabs(parts)]
            matrices[spec.name] = _stacked(slabs)
        num_done += int(np.prod(spec.shape))
        advance(num_done / num_all)
    return matrices, vectors


def _slabs(parts: Sequence[Tensor]) -> list[tuple[Tensor, int, int]]:
    """Cut stacked parts into pieces of at most _SLAB_ROWS rows."""
    return [
        (part, first, min(first + _SLAB_ROWS, part.shape[0]))
        for part in parts
        for first in range(0, part.shape[0], _SLAB_ROWS)
    ]


def _slab(
    piece: tuple[Tensor, int, int], choice: FormChoice, offset: float, dtype: torch.dtype, device: torch.device
) -> Weight:
    """Bring some rows to the device in a form."""
    part, first, last = piece
    if not offset and choice.form == "dense" and dtype == torch.bfloat16 and part.format is Format.BF16:
        bits = np.ascontiguousarray(part.data[first:last]).view(np.int16)
        return forms.dense(torch.from_numpy(bits).view(torch.bfloat16).to(device))
    if not offset and choice.group == 32 and (exact := _exact(part, first, last, choice)) is not None:
        return _moved(exact, device)
    values = torch.from_numpy(part.to_float(first, last) + np.float32(offset)).to(device)
    match choice.form:
        case "dense":
            return forms.dense(values.to(dtype))
        case "int8":
            return forms.int8(values, choice.group or None)
        case "int4":
            return forms.int4(values, choice.group)
        case "fp8":
            return forms.fp8(values)


def _exact(part: Tensor, first: int, last: int, choice: FormChoice) -> Weight | None:
    """Take over blocks number by number, if the form holds them."""
    k = part.shape[1]
    blocks = np.ascontiguousarray(part.data[first:last]).reshape(-1, part.format.block_bytes)
    scales = _halves(blocks[:, 0:2], last - first)
    if choice.form == "int8" and part.format is Format.Q8_0:
        return _int8(blocks[:, 2:].view(np.int8), scales, k)
    if choice.form == "int8" and part.format is Format.Q5_0:
        fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little")
        return _int8((_nibbles(blocks[:, 6:]) | (fifth << 4)).astype(np.int8) - np.int8(16), scales, k)
    if choice.form == "int4" and part.format is Format.Q4_K:
        scale, minimum, numbers = split_q4_k(blocks)
        held = [torch.from_numpy(values.reshape(last - first, -1).astype(np.float16)) for values in (scale, -minimum)]
        return forms.from_nibbles(torch.from_numpy(numbers.reshape(last - first, k)), held[0], held[1], k=k)
    if choice.form == "int4" and part.format in (Format.Q4_0, Format.Q4_1) and k % forms.INT4_CHUNK == 0:
        is_plain = part.format is Format.Q4_0
        lows = -8 * scales if is_plain else _halves(blocks[:, 2:4], last - first)
        steps = _nibbles(blocks[:, 2:] if is_plain else blocks[:, 4:]).reshape(last - first, k)
        return forms.from_nibbles(torch.from_numpy(steps), torch.from_numpy(scales), torch.from_numpy(lows), k=k)
    return None


def _nibbles(halves: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return 4-bit numbers [blocks, 32] of blocks that store number j and j + 16 in byte j."""
    return np.concatenate((halves & 15, halves >> 4), axis=1)


def _halves(data: NDArray[np.uint8], rows: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(data).view(np.float16).reshape(rows, -1)


def _int8(values: NDArray[np.int8], scales: NDArray[np.float16], k: int) -> Weight:
    rows = len(scales)
    held = torch.from_numpy(np.ascontiguousarray(values).reshape(rows, k))
    return Weight(form="int8", n=rows, k=k, group=32, values=held, scales=torch.from_numpy(scales))


def _moved(weight: Weight, device: torch.device) -> Weight:
    return replace(
        weight,
        values=weight.values.to(device),
        scales=None if weight.scales is None else weight.scales.to(device),
        lows=None if weight.lows is None else weight.lows.to(device),
    )


def _stacked(slabs: list[Weight]) -> Weight:
    """Put slabs below each other."""
    first = slabs[0]
    if len(slabs) == 1:
        return first
    return replace(
        first,
        n=sum(slab.n for slab in slabs),
        values=_cat([slab.values for slab in slabs]),
        scales=None if first.scales is None else _cat([slab.scales for slab in slabs]),
        lows=None if first.lows is None else _cat([slab.lows for slab in slabs]),
    )


def _cat(tensors: list[torch.Tensor | None]) -> torch.Tensor:
    held = [tensor for tensor in tensors if tensor is not None]
    if held[0].dtype == torch.float8_e4m3fn:  # not every device concatenates these
        return torch.cat([tensor.view(torch.uint8) for tensor in held]).view(torch.float8_e4m3fn)
    return torch.cat(held)


def _check_shape(spec: WeightSpec, parts: Sequence[Tensor]) -> None:
    """Raise ModelFileBroken unless the parts stack to the weight's shape."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    if shape != spec.shape or any(part.shape[1:] != shape[1:] for part in parts):
        found = ", ".join(f"{part.name} {list(part.shape)}" for part in parts)
        raise ModelFileBroken(
            f"weight '{spec.name}' should be {list(spec.shape)}, the file has {found}; "
            "its config and tensors do not belong together: fetch the model again"
        )
