"""Products of few tokens with a weight in any form, decoded in registers; long batches go to `long_products`.

Owns nothing: parts that have arrived are counted in `counters`. Called by `executor.cuda`.
The specification is `ops.reference.linear` on the decoded weight; the kernel is in `linear_kernel`, how it is cut in
`tiling`. Sums of parts are added up first to last by the program that ends last.
Invariant: with `is_invariant` a token's result has the same bits in any batch: one tile shape for any number of tokens,
each token of a tile summed alike.
Letters: T tokens, K inputs, N outputs, F = N / 2 for gated layers: gate rows first, then up rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton

from headrace.ops.cuda.counters import counters_of
from headrace.ops.cuda.dequantize import KINDS
from headrace.ops.cuda.epilogue import ACTIVATIONS, EPILOGUES, Epilogue
from headrace.ops.cuda.launching import INTERPRETED, attempt, early, start
from headrace.ops.cuda.linear_kernel import linear_kernel
from headrace.ops.cuda.long_products import long_linear
from headrace.ops.cuda.norm import Following
from headrace.ops.cuda.sizes import cdiv
from headrace.ops.cuda.tiling import INVARIANT_TOKENS, SHARED_BYTES, Tiling, bucket, most_tokens, tiling
from headrace.ops.cuda.weights import CHUNK_INPUTS, FORM_NUMBERS, Weight


class Squares(NamedTuple):
    """What is left to do of a norm: the squares [tiles, T] fp32 of what was normed, and its eps."""

    of_tiles: torch.Tensor
    eps: float


def linear(
    x: torch.Tensor,
    weight: Weight,
    out: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    epilogue: Epilogue,
    is_invariant: bool = False,
    squares: Squares | None = None,
    following: Following | None = None,
) -> Squares | None:
    """Write epilogue(x @ weight.T + bias) to `out`.

    x          [T, K] contiguous
    out        [T, N], [T, N/2] with `glu`; with `add` it is added to
    squares    of a norm that `x` came from, which is finished here
    following  the norm of `out` that comes next, which may follow an `add` of few tokens
    Returns what is left to do of it; None where it is done.
    """
    name = f"linear_{weight.form}"
    if is_skinny(weight, len(x), x.dtype, is_invariant=is_invariant):
        left = None
        if following is not None:
            tiles = cdiv(weight.n, _tile(x, weight, is_invariant=is_invariant).block_n)
            left = Squares(torch.empty((tiles, len(x)), dtype=torch.float32, device=x.device), following.eps)
        launch = _launcher(x, weight, out, bias, epilogue, squares, following, left, is_invariant=is_invariant)
        if attempt(name, x, launch):
            return left
    if squares is not None:
        mean = squares.of_tiles.sum(0)[:, None] / weight.k
        x = (x.float() / torch.sqrt(mean + squares.eps)).to(x.dtype)
    long_linear(x, weight, out, bias, epilogue, following)
    return None


def is_skinny(weight: Weight, num_tokens: int, dtype: torch.dtype, *, is_invariant: bool) -> bool:
    """Say whether this kernel serves so many tokens of a type; others go to `long_products`."""
    return is_invariant or num_tokens <= few_tokens(weight, dtype)


def few_tokens(weight: Weight, dtype: torch.dtype) -> int:
    """Return up to how many tokens of a type a weight is multiplied with by this kernel."""
    return most_tokens(chunk=CHUNK_INPUTS.get(weight.form, 1), itemsize=dtype.itemsize)


def _launcher(
    x: torch.Tensor,
    weight: Weight,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    epilogue: Epilogue,
    squares: Squares | None,
    following: Following | None,
    left: Squares | None,
    *,
    is_invariant: bool,
) -> Callable[[], None]:
    """Return what launches the kernel: so that a failed one costs nothing but this closure."""

    def launch() -> None:
        is_gated = epilogue.kind == "glu"
        tile = _tile(x, weight, is_invariant=is_invariant)
        n, k, tokens = weight.n, weight.k, len(x)
        width = n // 2 if is_gated else n
        # Tiles of tokens first: programs with the same weights run beside each other and read them from memory once.
        places = cdiv(tokens, tile.block_t), cdiv(width, tile.block_n // 2 if is_gated else tile.block_n)
        scales, kind = weight.scale_words()
        partial, counters = out, out
        if tile.num_parts > 1:
            size = math.prod(places) * tile.num_parts * tile.block_n * tile.block_t
            partial = torch.empty(size, dtype=torch.float32, device=x.device)
            counters = counters_of(x.device)
        start(
            linear_kernel, (*places, tile.num_parts),
            x, weight.values, scales, x if bias is None else bias, out, partial, counters,
            x if squares is None else squares.of_tiles, x if following is None else following.weight,
            x if following is None else following.dst, x if left is None else left.of_tiles,
            tokens, n, k, width, len(weight.values), tile.num_turns, epilogue.scale, epilogue.softcap or 1.0,
            0.0 if squares is None else squares.eps,
            FORM=FORM_NUMBERS[weight.form], GROUP=weight.group, SCALE_KIND=KINDS[kind], HAS_BIAS=bias is not None,
            EPILOGUE=EPILOGUES[epilogue.kind], ACTIVATION=ACTIVATIONS[epilogue.activation],
            HAS_SOFTCAP=epilogue.softcap is not None, NUM_PARTS=tile.num_parts,
            NUM_SQUARES=0 if squares is None else len(squares.of_tiles), HAS_NEXT=following is not None,
            EVEN_N=width % (tile.block_n // 2 if is_gated else tile.block_n) == 0,
            EVEN_K=k % (tile.block_k * tile.num_turns) == 0,
            BLOCK_N=tile.block_n, BLOCK_T=tile.block_t, BLOCK_K=tile.block_k,
            num_warps=tile.num_warps, num_stages=tile.num_stages, **early(),
        )  # fmt: skip

    return launch


def _tile(x: torch.Tensor, weight: Weight, *, is_invariant: bool) -> Tiling:
    tokens = INVARIANT_TOKENS if is_invariant else bucket(len(x))
    return tile_of(weight, tokens, x.element_size(), _shared_bytes(x.device))


def tile_of(weight: Weight, num_tokens: int, itemsize: int, shared_bytes: int = SHARED_BYTES) -> Tiling:
    """Return how a weight is cut for a bucket of so many tokens."""
    n, k, chunk = weight.n, weight.k, CHUNK_INPUTS.get(weight.form, 1)
    held = weight.num_bytes / (n * k)
    return tiling(
        n=n, k=k, chunk=chunk, bytes_per_input=held, num_tokens=num_tokens, itemsize=itemsize, shared_bytes=shared_bytes
    )  # fmt: skip


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """Return the shared memory that one program can have on a device."""
    if INTERPRETED:
        return SHARED_BYTES
    facts = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return min(int(facts["max_shared_mem"]), SHARED_BYTES)
