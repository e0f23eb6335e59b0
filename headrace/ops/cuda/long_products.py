"""Products of many tokens: the vendor's library multiplies, one pass over the product does the rest.

Owns nothing. Called by `linear`, beyond the few tokens that its own kernel serves and where that cannot be compiled.
Packed weights are decoded slab by slab; tokens are rounded to e4m3 for fp8 weights where the device multiplies those.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.epilogue import ACTIVATIONS, ActivationName, Epilogue, activate, activated
from headrace.ops.cuda.launching import attempt
from headrace.ops.cuda.weights import Weight

_DECODED_ROWS = 16384  # of a packed weight, for the vendor's product


def long_linear(
    x: torch.Tensor, weight: Weight, out: torch.Tensor, bias: torch.Tensor | None, epilogue: Epilogue
) -> None:
    """Write epilogue(x @ weight.T + bias) to `out`; shapes as `linear` has them."""
    _finish_plain(_product(x, weight), out, bias, epilogue)


def _product(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """Multiply by the vendor's library, decoding packed weights slab by slab; returns [T, N]."""
    if weight.form == "dense":
        return torch.nn.functional.linear(x, weight.values)
    if weight.form == "fp8" and (product := _fp8_product(x, weight)) is not None:
        return product
    slabs = [
        torch.nn.functional.linear(x, weight.rows(slice(first, first + _DECODED_ROWS)).to(x.dtype))
        for first in range(0, weight.n, _DECODED_ROWS)
    ]
    return slabs[0] if len(slabs) == 1 else torch.cat(slabs, 1)


def _fp8_product(x: torch.Tensor, weight: Weight) -> torch.Tensor | None:
    """Round each token to e4m3 with a scale of its own and multiply in fp8; None where there are no units for it."""
    has_units = x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) >= (8, 9)
    if not has_units or x.dtype != torch.bfloat16 or weight.k % 16 or weight.n % 16:
        return None
    scales, rounded = quantize_tokens(x)
    assert weight.scales is not None
    product: torch.Tensor = torch._scaled_mm(
        rounded, weight.values.t(), scale_a=scales, scale_b=weight.scales.t(), out_dtype=x.dtype
    )
    return product


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (scales [T, 1] fp32, e4m3 values [T, K]) with the largest number of each token at the end of the range."""
    wide = x.float()
    scales = (wide.abs().amax(-1, keepdim=True) / 448.0).clamp(min=1e-30)
    return scales, (wide / scales).to(torch.float8_e4m3fn)


def _finish_plain(product: torch.Tensor, out: torch.Tensor, bias: torch.Tensor | None, epilogue: Epilogue) -> None:
    if epilogue.kind == "glu" and bias is None:
        _gate(product, out, epilogue.activation)
        return
    y = product.float()
    if bias is not None:
        y = y + bias
    if epilogue.kind == "glu":
        gate, up = y.chunk(2, -1)
        y = activated(gate, epilogue.activation) * up
    y = y * epilogue.scale
    if epilogue.softcap is not None:
        y = epilogue.softcap * torch.tanh(y / epilogue.softcap)
    if epilogue.kind == "add":
        out += y
    else:
        out.copy_(y)


def _gate(product: torch.Tensor, out: torch.Tensor, activation: ActivationName) -> None:
    """Write activation(gate) * up of [T, 2F] to `out` [T, F] in one pass."""
    f = out.shape[1]

    def launch() -> None:
        block = 1024
        _glu[(len(out), triton.cdiv(f, block))](product, out, f, ACTIVATION=ACTIVATIONS[activation], BLOCK=block)

    if not attempt("glu", product, launch):
        gate, up = product.float().chunk(2, -1)
        out.copy_(activated(gate, activation) * up)


@triton.jit
def _glu(product, out, f, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < f
    gate = tl.load(product + token * 2 * f + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(product + token * 2 * f + f + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token * f + cols, (activate(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=mask)
