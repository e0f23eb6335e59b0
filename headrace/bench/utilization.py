"""What a configuration's speed means on this machine: bytes and operations per second, and their share of the limits.

    decode   every weight that a token meets is read once a step; a row costs two operations per weight
    prefill  two operations per weight and token; the head counts once, for the last token
    share    of reading: weight bytes per second / measured read rate
             of multiplying: seconds that the products take at the measured rates of their kinds / seconds taken

Attention and its cache are not counted: the shares say what is reached with everything else in the way.
"""

from __future__ import annotations

import msgspec

from headrace.app.loading import OpenedModel
from headrace.bench.offline import OfflineReport
from headrace.executor.weights_pack import weight_shapes
from headrace.model.program import Head, Linear
from headrace.ops.native.limits import MachineLimits, measure_limits
from headrace.ops.native.linear import WeightFormat

_FLOATS = (WeightFormat.F32, WeightFormat.BF16)


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """Of one decode step: packed bytes read; of one row: operations in layers and head, and seconds at the limits."""

    weight_bytes: int
    layer_ops: int
    head_ops: int
    layer_limit_s: float
    head_limit_s: float


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Measured in this run."""

    read_gb_per_s: float
    int8_top_per_s: float
    bf16_top_per_s: float


class Utilization(msgspec.Struct, frozen=True, kw_only=True):
    """Rates of a report's medians and their shares of the limits, 0 to 1."""

    limits: Limits
    weight_bytes: int
    decode_gb_per_s: float
    decode_read_share: float
    decode_top_per_s: float
    decode_compute_share: float
    prefill_top_per_s: float
    prefill_compute_share: float


def utilization(opened: OpenedModel, report: OfflineReport) -> Utilization:
    """Measure the limits and compare. Cost: half a second and 256 MiB."""
    limits = measure_limits(opened.plan.threads.value)
    return compare(work_of(opened, limits), limits, report)


def work_of(opened: OpenedModel, limits: MachineLimits) -> Work:
    """Add up a model's products. Looks at tensor headers only."""
    shapes = weight_shapes(opened.program, opened.checkpoint, opened.plan.quantization.value)
    sums = {Linear: [0, 0.0], Head: [0, 0.0]}
    names = set()
    for op in opened.program.ops:
        if not isinstance(op, Linear | Head):
            continue
        name = op.weight if isinstance(op, Linear) else op.table
        shape = shapes[name]
        names.add(name)
        ops = 2 * shape.n * shape.k
        limit = limits.bf16_ops_per_s if shape.format in _FLOATS else limits.int8_ops_per_s
        sums[type(op)][0] += ops
        sums[type(op)][1] += ops / limit
    return Work(
        weight_bytes=sum(shapes[name].packed_bytes for name in names),
        layer_ops=int(sums[Linear][0]),
        head_ops=int(sums[Head][0]),
        layer_limit_s=sums[Linear][1],
        head_limit_s=sums[Head][1],
    )


def compare(work: Work, limits: MachineLimits, report: OfflineReport) -> Utilization:
    """Set a report's medians against the limits."""
    shape = report.shape
    step_s = report.step_ms.median / 1e3
    prefill_s = shape.batch * shape.prompt_tokens / report.prefill_tokens_per_s.median
    prefill_ops = shape.batch * (shape.prompt_tokens * work.layer_ops + work.head_ops)
    prefill_limit_s = shape.batch * (shape.prompt_tokens * work.layer_limit_s + work.head_limit_s)
    decode_ops = shape.batch * (work.layer_ops + work.head_ops)
    return Utilization(
        limits=Limits(
            read_gb_per_s=limits.read_bytes_per_s / 1e9,
            int8_top_per_s=limits.int8_ops_per_s / 1e12,
            bf16_top_per_s=limits.bf16_ops_per_s / 1e12,
        ),
        weight_bytes=work.weight_bytes,
        decode_gb_per_s=work.weight_bytes / step_s / 1e9,
        decode_read_share=work.weight_bytes / step_s / limits.read_bytes_per_s,
        decode_top_per_s=decode_ops / step_s / 1e12,
        decode_compute_share=shape.batch * (work.layer_limit_s + work.head_limit_s) / step_s,
        prefill_top_per_s=prefill_ops / prefill_s / 1e12,
        prefill_compute_share=prefill_limit_s / prefill_s,
    )
