"""A checkpoint's weights, straight from its mapped files into device layouts.

Owns nothing: what is made belongs to the caller. Called by `executor.cuda.executor`, and for sizes by `memory`.
A file's bytes go to the device as they are, through two pinned buffers, and are decoded and packed there: the host only
copies. Invariant: beside the result at most one slab exists in fp32, however large the matrix.
What stays what the file says: BF16; Q4_0, Q4_1 and Q4_K (int4, groups of 32); Q5_0 and Q8_0 (int8, groups of 32); but
scales keep eight bits beside bf16 activations, eleven beside others. Other block formats are decoded and rounded again
to the form that `quant.policy` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from headrace.core.errors import ModelFileBroken
from headrace.core.settings import Quantization
from headrace.executor.cuda import unpack
from headrace.executor.cuda.forms import FormChoice, choose_form
from headrace.executor.cuda.queues import open_queues
from headrace.executor.cuda.uplink import Uplink
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program, WeightSpec
from headrace.ops.cuda import weights as forms
from headrace.ops.cuda.weights import Weight
from headrace.quant.formats import Format
from headrace.quant.tensor import Tensor

_NIBBLES = frozenset({Format.Q4_0, Format.Q4_1, Format.Q4_K})
_SLAB_ROWS, _SLAB_BYTES = 4096, 64 << 20


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
    uplink = Uplink(device, open_queues(device))
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
            slabs = [_slab(piece, choice, spec.offset, dtype, uplink) for piece in _slabs(parts)]
            matrices[spec.name] = _stacked(slabs)
        num_done += int(np.prod(spec.shape))
        advance(num_done / num_all)
    return matrices, vectors


def _slabs(parts: Sequence[Tensor]) -> list[tuple[Tensor, int, int]]:
    """Cut stacked parts into pieces of bounded rows and bytes."""
    pieces = []
    for part in parts:
        rows = max(min(_SLAB_ROWS, _SLAB_BYTES // part.data.shape[1]), 1)
        pieces += [(part, first, min(first + rows, part.shape[0])) for first in range(0, part.shape[0], rows)]
    return pieces


def _slab(
    piece: tuple[Tensor, int, int], choice: FormChoice, offset: float, dtype: torch.dtype, uplink: Uplink
) -> Weight:
    """Bring some rows to the device and into a form."""
    part, first, last = piece
    if part.format in unpack.PLAIN:
        values = unpack.plain(uplink.bring(part.data[first:last]), part.format)
    elif part.format in unpack.GROUPED:
        taken = unpack.groups(uplink.bring(part.data[first:last]), part.format)
        if not offset and (exact := _exact(taken, part.format, choice, part.shape[1], dtype)) is not None:
            return exact
        values = taken.to_float()
    else:
        values = uplink.bring(part.to_float(first, last).view(np.uint8)).view(torch.float32)
    if offset:
        values = values.float() + offset
    match choice.form:
        case "dense":
            return forms.dense(values.to(dtype))
        case "int8":
            return forms.int8(values, choice.group or None, _scale_kind(dtype))
        case "int4":
            return forms.int4(values, choice.group, _scale_kind(dtype))
        case "fp8":
            return forms.fp8(values)


def _exact(taken: unpack.Groups, stored: Format, choice: FormChoice, k: int, dtype: torch.dtype) -> Weight | None:
    """Take over blocks number by number, if the form holds them."""
    numbers, scales, lows = taken
    if choice.group != k // scales.shape[1]:
        return None
    kind = _scale_kind(dtype)
    if choice.form == "int8" and lows is None:
        return forms.from_bytes(numbers, scales.to(kind))
    if choice.form == "int4" and stored in _NIBBLES and lows is not None:
        kept = scales.to(kind)
        return forms.from_nibbles(numbers, kept, (lows + scales * 8.0).to(kind), k=k)
    return None


def _scale_kind(dtype: torch.dtype) -> torch.dtype:
    """Return the kind of the scales of groups beside activations of `dtype`."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float16


def _stacked(slabs: list[Weight]) -> Weight:
    """Put slabs below each other."""
    first = slabs[0]
    if len(slabs) == 1:
        return first
    scales = [slab.scales for slab in slabs if slab.scales is not None]
    return replace(
        first,
        n=sum(slab.n for slab in slabs),
        values=_cat([slab.values for slab in slabs], 1 if first.form in forms.CHUNK_INPUTS else 0),
        scales=_cat(scales, 1 if first.group else 0) if scales else None,
    )


def _cat(tensors: list[torch.Tensor], dim: int) -> torch.Tensor:
    if tensors[0].dtype == torch.float8_e4m3fn:  # not every device concatenates these
        return torch.cat([tensor.view(torch.uint8) for tensor in tensors], dim).view(torch.float8_e4m3fn)
    return torch.cat(tensors, dim)


def _check_shape(spec: WeightSpec, parts: Sequence[Tensor]) -> None:
    """Raise ModelFileBroken unless the parts stack to the weight's shape."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    if shape != spec.shape or any(part.shape[1:] != shape[1:] for part in parts):
        found = ", ".join(f"{part.name} {list(part.shape)}" for part in parts)
        raise ModelFileBroken(
            f"weight '{spec.name}' should be {list(spec.shape)}, the file has {found}; "
            "its config and tensors do not belong together: fetch the model again"
        )
