"""Every kernel of the cuda backend against float64, then timed: a part of bench/gpu.py.

Outputs are poisoned before each check. Times are those of a graph's replay over a ring of buffers larger than the L2
cache; data is random; the share is that of the copy or of the product measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import torch
from gpu_long import long_rows
from gpu_report import DEVICE, KIND, Report, error, random, ring, seconds

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Sample
from headrace.ops.cuda.attention import Scoring, Tiles, attention, tile_size
from headrace.ops.cuda.attention_single import single_attention
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.linear import linear
from headrace.ops.cuda.norm import rms_norm
from headrace.ops.cuda.rope import Rotation, qk_write
from headrace.ops.cuda.sampling import (
    NUM_FLOATS,
    NUM_INTS,
    OUT_TOKEN,
    REPETITION,
    SEED_LOW,
    TARGET,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    Lines,
    try_draw,
)
from headrace.ops.cuda.tiling import LIBRARY_TOKENS
from headrace.ops.cuda.weights import Weight, dense, fp8, int4, int8
from headrace.sampling import sample_rows

BLOCK_SIZE = 32
DRAWS = {
    "greedy": SamplingParams(temperature=0.0),
    "greedy with 5 alternatives": SamplingParams(temperature=0.0, logprobs=5),
    "temperature 1": SamplingParams(temperature=1.0),
    "top-k 50": SamplingParams(temperature=1.0, top_k=50),
    "top-p 0.9": SamplingParams(temperature=1.0, top_p=0.9),
}
FORMS: dict[str, Callable[[torch.Tensor], Weight]] = {
    "bf16": lambda values: dense(values.to(KIND)),
    "int8": int8,
    "int4": int4,
    "fp8": fp8,
}
PACKED = ("int8", "int4")  # of more tokens than the library multiplies with the others


@torch.inference_mode()
def kernels(report: Report) -> None:
    """Check each kernel, then time it: attention first, then products of few tokens and of many, then small ones."""
    is_tiny = report.is_tiny
    report.measure_limits()
    for d in (64,) if is_tiny else (128, 64, 80, 96, 256):
        for rows, context in ((2, 70),) if is_tiny else ((1, 16384), (64, 2048)):
            attempt(report, f"decode attention, D {d}, {rows} rows of {context}", decode_row, d, rows, context)
            if d in (64, 128):
                name = f"decode attention, int8 KV, D {d}, {rows} rows of {context}"
                attempt(report, name, decode_row, d, rows, context, True)
                for how in ("at once", "in two launches"):
                    name = f"rotation and decode attention {how}, D {d}, {rows} rows of {context}"
                    attempt(report, name, single_row, d, rows, context, how == "at once")
        tokens = 40 if is_tiny else 4096
        attempt(report, f"prefill attention, D {d}, {tokens} tokens", prefill_row, d, tokens)
    shapes = [(64, 128)] if is_tiny else [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]
    for tokens in (1, 66) if is_tiny else (1, 64, 16, 128, 256):
        for n, k in shapes:
            for form in PACKED if tokens > LIBRARY_TOKENS else FORMS:
                attempt(report, f"linear {form}, {tokens} tokens, {n} x {k}", linear_row, form, n, k, tokens)
    for name, measure in long_rows(FORMS, is_tiny=is_tiny):
        attempt(report, name, measure)
    tokens, width = (2, 128) if is_tiny else (4096, 4096)
    attempt(report, f"norm, {tokens} x {width}", norm_row, tokens, width)
    vocab = 300 if is_tiny else 128256
    for lines in (2,) if is_tiny else (1, 32, 256):
        for how, params in DRAWS.items():
            attempt(report, f"draw, {how}, {lines} rows of {vocab}", draw_row, lines, vocab, params)


def attempt(report: Report, name: str, measure: Callable[..., dict[str, object]], *shape: object) -> None:
    """Measure one row, if there is time."""
    if report.has_time(name):
        with report.row(name, hangs_after=90.0):
            report.add(name, **measure(report, *shape))


def norm_row(report: Report, tokens: int, width: int) -> dict[str, object]:
    x, weight = random(tokens, width), random(width)
    out = torch.full((tokens, width), torch.nan, dtype=KIND, device=DEVICE)
    rms_norm(x, weight, out, eps=1e-5)
    wide = x.double()
    expected = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    found = error(out, expected)
    copies = [x.clone() for _ in range(ring(x.nbytes))]
    took = seconds(report, [lambda c=c: rms_norm(c, weight, out, eps=1e-5) for c in copies])
    return {"error": found, "us": took * 1e6, **report.share(took, tokens * width * 6)}


def linear_row(report: Report, form: str, n: int, k: int, tokens: int) -> dict[str, object]:
    weight = FORMS[form](random(n, k) / k**0.5)
    x = random(tokens, k).to(KIND)
    outs = torch.full((tokens, n), torch.nan, dtype=KIND, device=DEVICE)
    linear(x, weight, outs, epilogue=Epilogue())
    ends = (slice(0, 256), slice(max(n - 256, 0), n))  # float64 of all would take longer than what is measured
    wrong = max(error(outs[:, some], x.double() @ weight.rows(some).double().T) for some in ends)
    if bool(outs.isnan().any()):
        wrong = float("nan")
    copies = [replace(weight, values=weight.values.clone()) for _ in range(min(ring(weight.num_bytes), 32))]
    took = seconds(report, [lambda w=w: linear(x, w, outs, epilogue=Epilogue()) for w in copies])
    shares = report.share(took, weight.num_bytes + 2 * tokens * (n + k), 2.0 * n * k * tokens)
    return {"error": wrong, "us": took * 1e6, **shares}


def paged(d: int, rows: int, context: int, kv_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a cache and block tables, blocks in random order."""
    per_row = -(-context // BLOCK_SIZE)
    cache = random(rows * per_row, 2, kv_heads, BLOCK_SIZE, d).to(KIND)
    order = torch.randperm(rows * per_row, dtype=torch.int32, device=DEVICE)
    return cache, order.view(rows, per_row)


def exact_attention(q: torch.Tensor, cache: torch.Tensor, table: torch.Tensor, first: int, d: int) -> torch.Tensor:
    """Return float64 attention of tokens at positions `first` … over one row."""
    kv_heads, length = cache.shape[2], first + len(q)
    held = cache[table.long()].double().permute(1, 2, 0, 3, 4).reshape(2, kv_heads, -1, d)[:, :, :length]
    heads = q.view(len(q), kv_heads, -1, d).double().permute(1, 2, 0, 3)
    s = heads @ held[0][:, None].transpose(-1, -2) * d**-0.5
    own = torch.arange(first, length, device=q.device)[:, None]
    s = s.masked_fill(torch.arange(length, device=q.device) > own, float("-inf"))
    return (torch.softmax(s, -1) @ held[1][:, None]).permute(2, 0, 1, 3).reshape(len(q), -1)


def rounded(cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a cache in int8 and its scales, as a pool has them: a head's scales behind its numbers."""
    *lead, block_size, d = cache.shape
    pool = torch.empty((*lead, block_size * (d + 2)), dtype=torch.int8, device=cache.device)
    values, scales = pool[..., : block_size * d].unflatten(-1, (block_size, d)), pool[..., block_size * d :]
    scales = scales.view(torch.bfloat16)
    scales.copy_(cache.abs().amax(-1) / 126)
    values.copy_((cache / scales[..., None]).round().clamp(-127, 127))
    return values, scales


def decode_row(report: Report, d: int, rows: int, context: int, is_int8: bool = False) -> dict[str, object]:
    q_heads, kv_heads = (4, 2) if report.is_tiny else (32, 8)
    cache, tables = paged(d, rows, context, kv_heads)
    scales = None
    exact = cache
    if is_int8:
        cache, scales = rounded(cache)
        exact = cache.to(KIND) * scales[..., None]
    num_bytes = cache.numel() * (1 if is_int8 else 2) + (0 if scales is None else 2 * scales.numel())
    q = random(rows, q_heads * d).to(KIND)
    out = torch.full_like(q, torch.nan)
    at = torch.arange(rows, dtype=torch.int32, device=DEVICE)
    parts = min(1 << (max(264 // (rows * kv_heads), 1).bit_length() - 1), 32)
    tiles = Tiles(rows=at, first=at, count=torch.ones_like(at), size=1, num_parts=parts)
    positions = torch.full((rows,), context - 1, dtype=torch.int32, device=DEVICE)
    attention(q, out, cache, tables, tiles, positions, Scoring(scale=d**-0.5), scales=scales)
    checks = [
        error(out[r : r + 1], exact_attention(q[r : r + 1], exact, tables[r], context - 1, d)) for r in (0, rows - 1)
    ]
    del exact
    copies = [cache, *[cache.clone() for _ in range(min(ring(num_bytes), 8) - 1)]]
    took = seconds(
        report,
        [
            lambda c=c: attention(q, out, c, tables, tiles, positions, Scoring(scale=d**-0.5), scales=scales)
            for c in copies
        ],
    )
    wrong = float("nan") if bool(out.isnan().any()) else max(checks)
    return {"error": wrong, "us": took * 1e6, **report.share(took, num_bytes)}


def single_row(report: Report, d: int, rows: int, context: int, at_once: bool) -> dict[str, object]:
    """From the QKV product to attention's output. `right`: both ways write the same numbers into the cache."""
    q_heads, kv_heads = (4, 2) if report.is_tiny else (32, 8)
    cache, tables = paged(d, rows, context, kv_heads)
    qkv = random(rows, (q_heads + 2 * kv_heads) * d).to(KIND)
    q, out = (torch.full((rows, q_heads * d), torch.nan, dtype=KIND, device=DEVICE) for _ in "qo")
    at = torch.arange(rows, dtype=torch.int32, device=DEVICE)
    parts = min(1 << (max(264 // (rows * kv_heads), 1).bit_length() - 1), 32)
    tiles = Tiles(rows=at, first=at, count=torch.ones_like(at), size=1, num_parts=parts)
    positions = torch.full((rows,), context - 1, dtype=torch.int32, device=DEVICE)
    slots = tables[:, (context - 1) // BLOCK_SIZE] * BLOCK_SIZE + (context - 1) % BLOCK_SIZE
    inv_freq = 10000.0 ** -(torch.arange(0, d, 2, device=DEVICE) / d)
    rotation = Rotation(inv_freq=inv_freq, scale=1.0, q_norm=None, k_norm=None, eps=1e-6)
    scoring = Scoring(scale=d**-0.5)

    def launch(held: torch.Tensor, *, at_once: bool) -> None:
        if not at_once:
            qk_write(qkv, q, held, slots, positions, rotation)
            attention(q, out, held, tables, tiles, positions, scoring)
        elif not single_attention(qkv, out, held, tables, tiles, positions, scoring, rotation):
            raise RuntimeError("the kernel gave way to two launches")

    num_bytes = cache.nbytes
    copies = [cache, *[cache.clone() for _ in range(max(min(ring(num_bytes), 8), 2) - 1)]]
    launch(copies[1], at_once=False)
    out.fill_(torch.nan)
    launch(cache, at_once=at_once)
    checks = [
        error(out[r : r + 1], exact_attention(q[r : r + 1], cache, tables[r], context - 1, d)) for r in (0, rows - 1)
    ]
    wrong = float("nan") if bool(out.isnan().any()) else max(checks)
    right = torch.equal(cache, copies[1])
    took = seconds(report, [lambda c=c: launch(c, at_once=at_once) for c in copies])
    return {"error": wrong, "right": right, "us": took * 1e6, **report.share(took, num_bytes)}


def prefill_row(report: Report, d: int, tokens: int) -> dict[str, object]:
    q_heads, kv_heads = (4, 2) if report.is_tiny else (32, 8)
    cache, tables = paged(d, 1, tokens, kv_heads)
    q = random(tokens, q_heads * d).to(KIND)
    out = torch.full_like(q, torch.nan)
    size = tile_size(q_heads // kv_heads, d)
    first = torch.arange(0, tokens, size, dtype=torch.int32, device=DEVICE)
    count = torch.clamp(tokens - first, max=size)
    tiles = Tiles(rows=torch.zeros_like(first), first=first, count=count, size=size, num_parts=1)
    positions = torch.arange(tokens, dtype=torch.int32, device=DEVICE)
    attention(q, out, cache, tables, tiles, positions, Scoring(scale=d**-0.5))
    few = min(tokens, 256)
    checks = [
        error(out[at : at + few], exact_attention(q[at : at + few], cache, tables[0], at, d))
        for at in (0, tokens - few)
    ]
    wrong = float("nan") if bool(out.isnan().any()) else max(checks)
    took = seconds(report, [lambda: attention(q, out, cache, tables, tiles, positions, Scoring(scale=d**-0.5))])
    shares = report.share(took, cache.nbytes + 2 * q.nbytes, 2.0 * tokens * tokens * q_heads * d)
    return {"error": wrong, "us": took * 1e6, **shares}


def draw_row(report: Report, lines: int, vocab: int, params: SamplingParams) -> dict[str, object]:
    """Draw as the executor does. `right`: the first rows have numpy's tokens, all of them where they are greedy."""
    logits = random(lines, vocab) * 3
    floats = torch.zeros((lines, NUM_FLOATS), dtype=torch.float64)
    floats[:, TEMPERATURE], floats[:, TOP_P], floats[:, REPETITION] = params.temperature, params.top_p, 1.0
    ints = torch.zeros((lines, NUM_INTS), dtype=torch.int32)
    ints[:, SEED_LOW], ints[:, TOP_K], ints[:, TARGET] = torch.arange(lines, dtype=torch.int32), params.top_k, -1
    ready = Lines(floats=floats.to(DEVICE), ints=ints.to(DEVICE))
    is_greedy = params.temperature == 0

    def launch(z: torch.Tensor) -> torch.Tensor | None:
        return try_draw(z, ready, None, num_top=params.logprobs, is_greedy=is_greedy)

    out = launch(logits)
    if out is None:
        raise RuntimeError("the kernel gave way to numpy")
    rows = [
        Row(SeqId(i), 0, (1,), (0,), msgspec.structs.replace(params, seed=i))
        for i in range(lines if is_greedy else min(lines, 4))
    ]
    known = sample_rows(logits[: len(rows)].cpu().numpy(), rows)
    found = out[: len(rows), OUT_TOKEN].long().tolist()
    right = found == [sample.token_id for sample in known if isinstance(sample, Sample)]
    copies = [logits.clone() for _ in range(min(ring(logits.nbytes), 32))]
    took = seconds(report, [lambda z=z: launch(z) for z in copies])
    return {"right": right, "us": took * 1e6, **report.share(took, logits.nbytes)}
