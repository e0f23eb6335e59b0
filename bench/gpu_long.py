"""What a step of many tokens is made of, beside attention: products by the vendor's library and the passes around them.

A part of bench/gpu_kernels.py: each is checked against float64 on its first and last tokens, then timed. Shares are
those of the copy or of the product measured in the same run; an fp8 product may pass 1 of the latter, which is in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from gpu_report import DEVICE, KIND, Report, error, random, ring, seconds

from headrace.ops.cuda.e4m3 import Rounded, multiplies_e4m3, room_in, round_tokens
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.finish import finish
from headrace.ops.cuda.long_products import long_linear
from headrace.ops.cuda.norm import Following, add_rms_norm
from headrace.ops.cuda.rows import decode_slab
from headrace.ops.cuda.weights import Weight

Row = tuple[str, Callable[[Report], dict[str, object]]]
FEW = 32  # tokens at either end that are checked


def long_rows(forms: dict[str, Callable[[torch.Tensor], Weight]], *, is_tiny: bool) -> Iterator[Row]:
    """Yield the rows: a name, and what measures it."""
    tokens = 6 if is_tiny else 4096
    shapes = [(64, 128)] if is_tiny else [(6144, 4096), (28672, 4096), (4096, 14336)]
    for form, make in forms.items():
        for n, k in shapes:
            yield (
                f"long linear {form}, {tokens} tokens, {n} x {k}",
                lambda report, f=form, m=make, n=n, k=k: product_row(report, f, m(random(n, k) / k**0.5), tokens),
            )
    width, gated = (64, 96) if is_tiny else (4096, 14336)
    for is_rounded in (False, True):
        into = " to e4m3" if is_rounded else ""
        yield f"glu, {tokens} x {gated}{into}", lambda report, r=is_rounded: glu_row(report, tokens, gated, r)
        yield f"add and norm, {tokens} x {width}{into}", lambda report, r=is_rounded: sum_row(report, tokens, width, r)
    yield f"round to e4m3, {tokens} x {width}", lambda report: round_row(report, tokens, width)
    for form in ("int8", "int4"):
        yield (
            f"decode {form}, a slab of {width} x {width}",
            lambda report, m=forms[form]: slab_row(report, m(random(width, width))),
        )
    if DEVICE == "cuda" and not is_tiny and multiplies_e4m3(torch.empty(1, dtype=KIND, device=DEVICE)):
        for is_fast in (True, False):
            name = "in the tensor cores" if is_fast else "in fp32 registers"
            yield (
                f"fp8 product with sums {name}, {tokens} tokens, 4096 x 14336",
                lambda report, f=is_fast: sums_row(report, forms["fp8"](random(4096, 14336) / 120.0), tokens, f),
            )


def ends(x: torch.Tensor) -> torch.Tensor:
    """Return the first and the last tokens."""
    if x.dtype == torch.float8_e4m3fn:  # not every device concatenates these
        return ends(x.view(torch.uint8)).view(x.dtype)
    return torch.cat((x[:FEW], x[-FEW:]))


def taken(x: torch.Tensor, form: str) -> torch.Tensor:
    """Return tokens in float64 as a product takes them: with fp8 weights rounded, where the device multiplies that."""
    if form != "fp8" or not multiplies_e4m3(x):
        return x.double()
    rounded = round_tokens(x)
    return rounded.values.double() * rounded.scales.double()


def product_row(report: Report, form: str, weight: Weight, tokens: int) -> dict[str, object]:
    x = random(tokens, weight.k).to(KIND)
    out = torch.full((tokens, weight.n), torch.nan, dtype=KIND, device=DEVICE)
    long_linear(x, weight, out, None, Epilogue())
    exact = taken(ends(x), form) @ weight.rows(slice(None)).double().T
    wrong = float("nan") if bool(out.isnan().any()) else error(ends(out), exact)
    took = seconds(report, [lambda: long_linear(x, weight, out, None, Epilogue())])
    moved = weight.num_bytes + 2 * tokens * (weight.n + weight.k)
    return {"error": wrong, "us": took * 1e6, **report.share(took, moved, 2.0 * weight.n * weight.k * tokens)}


def sums_row(report: Report, weight: Weight, tokens: int, is_fast: bool) -> dict[str, object]:
    x = round_tokens(random(tokens, weight.k).to(KIND))
    out = torch.full((tokens, weight.n), torch.nan, dtype=KIND, device=DEVICE)
    assert weight.scales is not None
    scale_b = weight.scales.t()

    def call() -> None:
        torch._scaled_mm(
            x.values, weight.values.t(), scale_a=x.scales, scale_b=scale_b, out_dtype=KIND, use_fast_accum=is_fast,
            out=out,
        )  # fmt: skip

    call()
    exact = (ends(x.values).double() * ends(x.scales).double()) @ weight.rows(slice(None)).double().T
    took = seconds(report, [call])
    moved = weight.num_bytes + tokens * (2 * weight.n + weight.k)
    shares = report.share(took, moved, 2.0 * weight.n * weight.k * tokens)
    return {"error": error(ends(out), exact), "us": took * 1e6, **shares}


def room(tokens: int, width: int, is_rounded: bool) -> torch.Tensor | Rounded:
    """Return poisoned room for tokens."""
    slot = torch.full((tokens, width), torch.nan, dtype=KIND, device=DEVICE)
    return room_in(slot) if is_rounded else slot


def wrong_by(found: torch.Tensor | Rounded, exact: torch.Tensor) -> float:
    """Return the relative error at either end. One of e4m3 is told less the 2 to 3 % that rounding costs by itself."""
    if isinstance(found, torch.Tensor):
        return error(ends(found), exact)
    largest = exact.abs().amax(-1, keepdim=True) / 448.0
    rounded = (exact / largest).float().to(torch.float8_e4m3fn).double() * largest
    return error(ends(found.values).double() * ends(found.scales).double(), rounded)


def glu_row(report: Report, tokens: int, width: int, is_rounded: bool) -> dict[str, object]:
    product = random(tokens, 2 * width).to(KIND)
    out = room(tokens, width, is_rounded)
    epilogue = Epilogue(kind="glu")
    finish(product, out, None, epilogue)
    gate, up = ends(product).double().chunk(2, -1)
    wrong = wrong_by(out, (torch.nn.functional.silu(gate) * up).to(KIND).double())
    copies = [product.clone() for _ in range(min(ring(product.nbytes), 8))]
    took = seconds(report, [lambda p=p: finish(p, out, None, epilogue) for p in copies])
    return {"error": wrong, "us": took * 1e6, **report.share(took, tokens * width * (5 if is_rounded else 6))}


def sum_row(report: Report, tokens: int, width: int, is_rounded: bool) -> dict[str, object]:
    product, total, weight = random(tokens, width).to(KIND), random(tokens, width), random(width)
    exact = ends(product).double() + ends(total).double()
    exact = exact / torch.sqrt(exact.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    out = room(tokens, width, is_rounded)
    after = Following(weight, out, 1e-5)
    totals = [total, *[total.clone() for _ in range(min(ring(total.nbytes), 8) - 1)]]
    add_rms_norm(product, None, total, after)
    wrong = wrong_by(out, exact.to(KIND).double())
    took = seconds(report, [lambda t=t: add_rms_norm(product, None, t, after) for t in totals])
    return {"error": wrong, "us": took * 1e6, **report.share(took, tokens * width * (11 if is_rounded else 12))}


def round_row(report: Report, tokens: int, width: int) -> dict[str, object]:
    x = random(tokens, width).to(KIND)
    wrong = wrong_by(round_tokens(x), ends(x).double())
    copies = [x.clone() for _ in range(min(ring(x.nbytes), 8))]
    took = seconds(report, [lambda c=c: round_tokens(c) for c in copies])
    return {"error": wrong, "us": took * 1e6, **report.share(took, tokens * width * 3)}


def slab_row(report: Report, weight: Weight) -> dict[str, object]:
    out = torch.full((weight.n, weight.k), torch.nan, dtype=KIND, device=DEVICE)
    decode_slab(weight, 0, out)
    wrong = error(out, weight.rows(slice(None)).double())
    took = seconds(report, [lambda: decode_slab(weight, 0, out)])
    return {"error": wrong, "us": took * 1e6, **report.share(took, weight.num_bytes + out.nbytes)}
