"""Products of many tokens: the vendor's library multiplies, one pass over the product does the rest.

Owns nothing. Called by `linear`, beyond the few tokens that its own kernel serves and where that cannot be compiled.
Packed weights are decoded slab by slab; tokens are rounded to e4m3 for fp8 weights where the device multiplies those.
"""

from __future__ import annotations

import torch

from headrace.ops.cuda.e4m3 import Rounded, multiplies_e4m3, round_tokens
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.finish import finish
from headrace.ops.cuda.norm import Following, add_rms_norm
from headrace.ops.cuda.rows import decode_slab
from headrace.ops.cuda.weights import Weight

MOST_SLAB_ROWS = 16384
_SLAB_BYTES = 32 << 20  # most of it is still in the L2 cache when it is multiplied
_SLAB_OUTPUTS = 1 << 23  # two waves of 128 x 256 on 132 multiprocessors
_ROW_STEP = 1024


def long_linear(
    x: torch.Tensor | Rounded,
    weight: Weight,
    out: torch.Tensor | Rounded,
    bias: torch.Tensor | None,
    epilogue: Epilogue,
    following: Following | None = None,
) -> None:
    """Write epilogue(x @ weight.T + bias) to `out`; shapes as `linear` has them.

    x, out     rounded tokens are for fp8 weights of which `takes_rounded` is true
    following  the norm of `out` that comes next, which may follow a plain `add`
    """
    tokens, kind = (x.values, torch.bfloat16) if isinstance(x, Rounded) else (x, x.dtype)
    if epilogue == Epilogue() and bias is None and isinstance(out, torch.Tensor) and out.dtype == kind:
        _multiply(x, weight, out)
        return
    product = torch.empty((len(tokens), weight.n), dtype=kind, device=tokens.device)
    _multiply(x, weight, product)
    if following is None:
        finish(product, out, bias, epilogue)
    else:
        assert isinstance(out, torch.Tensor)
        add_rms_norm(product, bias, out, following)


def takes_rounded(weight: Weight) -> bool:
    """Say whether a weight is multiplied with rounded tokens where the device can."""
    return weight.form == "fp8" and weight.k % 16 == 0 and weight.n % 16 == 0


def _multiply(x: torch.Tensor | Rounded, weight: Weight, out: torch.Tensor) -> None:
    """Multiply by the vendor's library into `out` [T, N], decoding packed weights slab by slab."""
    if isinstance(x, Rounded):
        multiply_e4m3(x, weight, out)
    elif weight.form == "dense":
        torch.mm(x, weight.values.t(), out=out)
    elif takes_rounded(weight) and multiplies_e4m3(x):
        multiply_e4m3(round_tokens(x), weight, out)
    else:
        rows = slab_rows(weight.n, weight.k, len(x), itemsize=x.element_size())
        slab = torch.empty((rows, weight.k), dtype=x.dtype, device=x.device)
        for first in range(0, weight.n, rows):
            decoded = slab[: weight.n - first]
            decode_slab(weight, first, decoded)
            torch.mm(x, decoded.t(), out=out[:, first : first + rows])


def multiply_e4m3(x: Rounded, weight: Weight, out: torch.Tensor) -> None:
    """Multiply in fp8, with sums kept by the tensor cores: what they leave out is less than what rounding tokens and
    weights to three bits already cost, and sums in fp32 registers take up to a third of the rate."""
    assert weight.scales is not None
    torch._scaled_mm(
        x.values, weight.values.t(), scale_a=x.scales, scale_b=weight.scales.t(), out_dtype=out.dtype,
        use_fast_accum=True, out=out,
    )  # fmt: skip


def slab_rows(n: int, k: int, num_tokens: int, *, itemsize: int) -> int:
    """Return how many rows of a packed weight are decoded at a time: few enough to stay in the cache, enough for the
    product of a slab to fill the device."""
    wanted = max(_SLAB_BYTES // (k * itemsize), _SLAB_OUTPUTS // num_tokens)
    return min(-(-wanted // _ROW_STEP) * _ROW_STEP, MOST_SLAB_ROWS, n)
