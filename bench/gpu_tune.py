"""Other cuts of the products of few tokens than the rule's, timed beside it: a part of bench/gpu.py.

The rule of `ops.cuda.tiling` comes from counting; here each of its choices is varied by a step, alone, and what is
faster on this GPU is named. A cut that does not fit the GPU is left out. Sums of other parts differ in their last bits.
Of more than 64 tokens `library_us` is what decoding the weight and the vendor's product take.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from gpu_kernels import FORMS, PACKED
from gpu_report import KIND, Report, error, random, ring, seconds
from triton.errors import TritonError

from headrace.ops.cuda import linear as products
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.launching import compiling_ahead
from headrace.ops.cuda.long_products import long_linear
from headrace.ops.cuda.tiling import LIBRARY_TOKENS, Tiling, bucket
from headrace.ops.cuda.weights import CHUNK_INPUTS, Weight

_SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (3072, 2048), (2048, 8192))  # of an 8B and a 1B
_WORTH = 1.02  # times as fast: less is noise


@torch.inference_mode()
def tune(report: Report) -> None:
    """Time the cuts of each shape, form and number of tokens."""
    report.measure_limits()
    for tokens in (1, 66) if report.is_tiny else (1, 64, 16, 128, 256):
        for form in PACKED if tokens > LIBRARY_TOKENS else ("bf16", "int4") if report.is_tiny else FORMS:
            for n, k in ((64, 256),) if report.is_tiny else _SHAPES:
                name = f"cuts of {form}, {tokens} tokens, {n} x {k}"
                if report.has_time(name):
                    with report.row(name):
                        report.add(name, **best_cut(report, form, n, k, tokens))


def best_cut(report: Report, form: str, n: int, k: int, tokens: int) -> dict[str, object]:
    """Return what the rule's cut takes, and the fastest one where it is another."""
    weight = FORMS[form](random(n, k) / k**0.5)
    x = random(tokens, k).to(KIND)
    out = torch.empty((tokens, n), dtype=KIND, device=x.device)
    rule = products.tile_of(weight, bucket(tokens), x.element_size())
    cuts = [rule, *neighbours(rule, weight)]
    with compiling_ahead(len(os.sched_getaffinity(0))) as is_compiling:
        for cut in cuts if is_compiling else ():
            run(cut, x, weight, out)
    copies = [replace(weight, values=weight.values.clone()) for _ in range(min(ring(weight.num_bytes), 32))]
    expected = run(rule, x, weight, out).double()
    took: dict[Tiling, float] = {}
    for cut in cuts:
        try:
            wrong = error(run(cut, x, weight, out.fill_(torch.nan)), expected)
        except TritonError:
            continue
        if wrong < 0.01:
            took[cut] = seconds(report, [lambda w=w, c=cut: run(c, x, w, out) for w in copies])
    best = min(took, key=took.__getitem__)
    found: dict[str, object] = {"us": took[rule] * 1e6, "cuts": len(took), "left_out": len(cuts) - len(took)}
    if tokens > LIBRARY_TOKENS:
        found["library_us"] = 1e6 * seconds(
            report, [lambda w=w: long_linear(x, w, out, None, Epilogue()) for w in copies]
        )  # fmt: skip
    found |= report.share(took[rule], weight.num_bytes)
    if took[rule] > _WORTH * took[best]:
        changed = {name: getattr(best, name) for name in Tiling.__slots__ if getattr(best, name) != getattr(rule, name)}
        found |= {"best_us": took[best] * 1e6, "best": str(changed), "rule": str(rule)}
    return found


def neighbours(rule: Tiling, weight: Weight) -> Iterator[Tiling]:
    """Yield cuts that differ from the rule's in one choice; those that follow from it follow."""
    chunk = CHUNK_INPUTS.get(weight.form, 32)
    for buffers in {rule.buffers - 1, rule.buffers + 1, rule.buffers + 2} - {0, 1}:
        yield replace(rule, buffers=buffers)
    for num_warps in {2, 4, 8} - {rule.num_warps}:
        yield replace(rule, num_warps=num_warps)
    for block_n in {64, 128, 256} - {rule.block_n}:
        yield replace(rule, block_n=block_n)
    for block_t in {64, 128} - {rule.block_t} if rule.block_t >= 64 else ():
        yield replace(rule, block_t=block_t)
    whole = rule.num_turns * rule.num_parts * rule.block_k
    for block_k in {rule.block_k // 2, rule.block_k * 2}:
        if block_k >= max(chunk, 32):
            turns = -(-whole // block_k)
            yield replace(rule, block_k=block_k, num_turns=-(-turns // rule.num_parts))
    turns = rule.num_turns * rule.num_parts
    for num_parts in {rule.num_parts * 2, rule.num_parts // 2, 1} - {0, rule.num_parts}:
        num_turns = -(-turns // num_parts)
        yield replace(rule, num_turns=num_turns, num_parts=-(-turns // num_turns))


def run(cut: Tiling, x: torch.Tensor, weight: Weight, out: torch.Tensor) -> torch.Tensor:
    """Multiply into `out`, cut like that. Raises TritonError where that does not fit: no plain op takes its place."""
    with cut_as(cut):
        products._launcher(x, weight, out, None, Epilogue(), None, None, None, is_invariant=False)()
    return out


@contextmanager
def cut_as(cut: Tiling) -> Iterator[None]:
    """Have products cut like that and not by the rule."""
    rule = products.tile_of
    products.tile_of = lambda *given: cut
    try:
        yield
    finally:
        products.tile_of = rule
