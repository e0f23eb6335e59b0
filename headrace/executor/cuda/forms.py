"""Which form each weight gets on the GPU, and what a model then takes of its memory. Pure, and free of torch.

Called by `load_weights` and, before anything is loaded, by `app.backends`.
Rule of `auto`: as `quant.policy` has it for the native backend, so that numbers stay what the file says wherever a form
holds them; a format that is asked for is used for every matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.core.settings import KvDtype, Quantization
from headrace.executor.cuda.buckets import MOST_TOKENS, Buckets
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Attention, CacheLayer, Program
from headrace.quant.formats import Format
from headrace.quant.policy import choose

_INT8_CHUNK, _INT4_CHUNK = 64, 128  # inputs that packed weights are padded to a multiple of
_GROUP = 32
_SCALE_BYTES = 2
_SLAB_ROWS = 16384  # of a packed weight that are decoded at a time for long batches, at most
_KERNEL_BYTES = 8 << 10  # of a kernel in a recorded graph, assumed: node, arguments, and what the driver keeps
_CHUNK = 512  # tokens of prompts that graphs are counted for
_PLAIN_ROWS, _PLAIN_TOKENS = 2048, 512  # that torch's ops take at a time where a kernel does not compile


@dataclass(frozen=True, slots=True)
class FormChoice:
    """A form of `ops.cuda.weights`; `group` is 0 where a scale serves a whole output."""

    form: Literal["dense", "int8", "int4", "fp8"]
    group: int = 0


def choose_form(stored: Sequence[Format], quantization: Quantization, k: int) -> FormChoice:
    """Return the form of a matrix with `k` inputs whose parts are stored like this."""
    if quantization == "fp8":
        return FormChoice("fp8")
    chosen = choose(stored, quantization, k)
    name = chosen.name
    if name == "I4G" and k % _GROUP == 0:
        return FormChoice("int4", math.gcd(chosen.group, k))  # a group never passes the end of a row here
    if name == "I8G" and k % _GROUP == 0:
        return FormChoice("int8", _GROUP)
    return FormChoice("dense") if name in ("F32", "BF16") else FormChoice("int8")


def weight_bytes(program: Program, checkpoint: Checkpoint, quantization: Quantization, *, itemsize: int = 2) -> int:
    """Return the bytes that the weights will take. Reads tensor headers only."""
    total = 0
    for spec in program.weights:
        if len(spec.shape) == 1:
            total += 4 * spec.shape[0]
            continue
        n, k = spec.shape
        formats = [checkpoint.tensor(part).format for part in spec.parts]
        choice = choose_form(formats, quantization, k)
        match choice.form:
            case "dense":
                total += n * k * itemsize
            case "int8":
                padded = -(-k // _INT8_CHUNK) * _INT8_CHUNK
                total += n * padded + (n * padded // 32 * _SCALE_BYTES if choice.group else n * 4)
            case "int4":
                padded = -(-k // _INT4_CHUNK) * _INT4_CHUNK
                total += n * padded // 2 + n * padded // choice.group * 4
            case "fp8":
                total += n * k + 4 * n
    return total


def kv_block_bytes(layers: Sequence[CacheLayer], *, block_size: int, kv_dtype: KvDtype = "auto") -> int:
    """Return the bytes of one block over all layers: bf16, or int8 with its scales."""
    itemsize = 1 if kv_dtype == "int8" else 2
    return sum(layer_block_bytes(layer, block_size=block_size, itemsize=itemsize) for layer in layers)


def layer_block_bytes(layer: CacheLayer, *, block_size: int, itemsize: int) -> int:
    """Return the bytes of one layer's part of a block. Numbers of one byte come with a bf16 scale for each head."""
    head_bytes = layer.head_dim * itemsize + (_SCALE_BYTES if itemsize == 1 else 0)
    return 2 * layer.kv_heads * block_size * head_bytes


def scratch_bytes(program: Program, *, max_step_tokens: int, max_rows: int, itemsize: int = 2) -> int:
    """Return what a step takes beside weights and pool, generously: slots, the widest product and attention's rounded
    numbers and decoded slabs, of eager steps and of graphs, logits, attention's parts, the graphs themselves."""
    widths = program.slot_widths()
    slots = max_step_tokens * sum(width * (4 if name == "x" else itemsize) for name, width in widths.items())
    widest = max(widths.values()) * 2
    queries = max(op.num_heads * op.head_dim for op in program.ops if isinstance(op, Attention))
    recorded = min(max_step_tokens, MOST_TOKENS)
    products = (max_step_tokens + recorded) * (widest * itemsize + queries) + _PLAIN_TOKENS * widest * 16
    matrices = [spec.shape for spec in program.weights if len(spec.shape) > 1]
    decoded = max(2 * min(n, _SLAB_ROWS) * k * itemsize + min(n, _PLAIN_ROWS) * k * 12 for n, k in matrices)
    logits = (max_rows + 64) * program.vocab_size * 36  # what is drawn with has room in graphs and beside them
    heads = max(layer.kv_heads * layer.head_dim for layer in program.cache_layers)
    parts = 512 * 32 * heads * 4
    turned = max_step_tokens * queries * itemsize
    buckets = Buckets(max_rows, chunk_tokens=_CHUNK, max_tokens=max_step_tokens)
    graphs = (2 * len(buckets.single) + len(buckets.mixed)) * len(program.ops) * _KERNEL_BYTES
    return slots + products + decoded + logits + parts + turned + graphs + math.ceil(0.02 * slots)
