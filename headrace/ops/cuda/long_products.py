"""Products of many tokens: the vendor's library multiplies, one pass over the product does the rest.

Owns nothing. Called by `linear`, beyond the few tokens that its own kernel serves and where that cannot be compiled.
Packed weights are decoded slab by slab; tokens are rounded to e4m3 for fp8 weights where the device multiplies those.
"""

from __future__ import annotations

import torch

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
    x: torch.Tensor,
    weight: Weight,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    epilogue: Epilogue,
    following: Following | None = None,
) -> None:
    """Write epilogue(x @ weight.T + bias) to `out`; shapes as `linear` has them.

    following  the norm of `out` that comes next, which may follow a plain `add`
    """
    if epilogue == Epilogue() and bias is None and out.dtype == x.dtype:
        _multiply(x, weight, out)
        return
    product = torch.empty((len(x), weight.n), dtype=x.dtype, device=x.device)
    _multiply(x, weight, product)
    if following is None:
        finish(product, out, bias, epilogue)
    else:
        add_rms_norm(product, bias, out, following)


def _multiply(x: torch.Tensor, weight: Weight, out: torch.Tensor) -> None:
    """Multiply by the vendor's library into `out` [T, N], decoding packed weights slab by slab."""
    if weight.form == "dense":
        torch.mm(x, weight.values.t(), out=out)
    elif weight.form != "fp8" or not _fp8_product(x, weight, out):
        rows = slab_rows(weight.n, weight.k, len(x), itemsize=x.element_size())
        slab = torch.empty((rows, weight.k), dtype=x.dtype, device=x.device)
        for first in range(0, weight.n, rows):
            decoded = slab[: weight.n - first]
            decode_slab(weight, first, decoded)
            torch.mm(x, decoded.t(), out=out[:, first : first + rows])


def slab_rows(n: int, k: int, num_tokens: int, *, itemsize: int) -> int:
    """Return how many rows of a packed weight are decoded at a time: few enough to stay in the cache, enough for the
    product of a slab to fill the device."""
    wanted = max(_SLAB_BYTES // (k * itemsize), _SLAB_OUTPUTS // num_tokens)
    return min(-(-wanted // _ROW_STEP) * _ROW_STEP, MOST_SLAB_ROWS, n)


def _fp8_product(x: torch.Tensor, weight: Weight, out: torch.Tensor) -> bool:
    """Round each token to e4m3 with a scale of its own and multiply in fp8; False where there are no units for it."""
    has_units = x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) >= (8, 9)
    if not has_units or x.dtype != torch.bfloat16 or weight.k % 16 or weight.n % 16:
        return False
    scales, rounded = quantize_tokens(x)
    assert weight.scales is not None
    torch._scaled_mm(rounded, weight.values.t(), scale_a=scales, scale_b=weight.scales.t(), out_dtype=x.dtype, out=out)
    return True


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (scales [T, 1] fp32, e4m3 values [T, K]) with the largest number of each token at the end of the range."""
    wide = x.float()
    scales = (wide.abs().amax(-1, keepdim=True) / 448.0).clamp(min=1e-30)
    return scales, (wide / scales).to(torch.float8_e4m3fn)
