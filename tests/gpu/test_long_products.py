"""Products of many tokens: what follows the vendor's product, against float64 and against the plain ops."""

from __future__ import annotations

import pytest
import torch

from headrace.executor.cuda import forms
from headrace.ops import reference
from headrace.ops.cuda import launching, long_products, rows
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.linear import linear
from headrace.ops.cuda.long_products import long_linear
from headrace.ops.cuda.norm import Following
from headrace.ops.cuda.rows import decode_slab, gather_rows
from headrace.ops.cuda.weights import dense
from tests.gpu.test_linear import FORMS, drawn, made, relative

TOKENS = 66


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", ["none", "add", "glu"])
def test_every_epilogue_is_applied(device: str, has_bias: bool, kind: str) -> None:
    x = drawn(device, TOKENS, 64) / 8
    weight = dense(drawn(device, 96, 64, seed=1))
    bias = drawn(device, 96, seed=2) if has_bias else None
    out = drawn(device, TOKENS, 48 if kind == "glu" else 96, seed=3)
    expected = x.double() @ weight.values.double().T + (0 if bias is None else bias.double())
    if kind == "glu":
        expected = torch.from_numpy(reference.glu(expected.float().cpu().numpy(), "silu")).to(device).double()
    elif kind == "add":
        expected = expected + out.double()
    linear(x, weight, out, bias=bias, epilogue=Epilogue(kind=kind))  # type: ignore[arg-type]
    assert relative(out, expected) < 1e-6


def test_a_head_scales_and_caps(device: str) -> None:
    x, weight = drawn(device, TOKENS, 64), dense(drawn(device, 48, 64, seed=1))
    out = torch.full((TOKENS, 48), torch.nan, device=device)
    linear(x, weight, out, epilogue=Epilogue(scale=0.5, softcap=3.0))
    expected = reference.head(x.cpu().numpy(), weight.values.cpu().numpy(), scale=0.5, softcap=3.0)
    torch.testing.assert_close(out.cpu(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_sum_is_normed_in_the_pass_that_adds_it(device: str, has_bias: bool) -> None:
    x, weight = drawn(device, TOKENS, 64).bfloat16(), made("dense", drawn(device, 96, 64, seed=1), torch.bfloat16)
    bias = drawn(device, 96, seed=2) if has_bias else None
    total = drawn(device, TOKENS, 96, seed=3)
    expected = (x @ weight.values.T).double() + (0 if bias is None else bias.double()) + total.double()
    scale = drawn(device, 96, seed=4)
    out = torch.full((TOKENS, 96), torch.nan, dtype=torch.bfloat16, device=device)
    long_linear(x, weight, total, bias, Epilogue(kind="add"), Following(scale, out, 1e-5))
    assert relative(total, expected) < 1e-6
    normed = expected / torch.sqrt(expected.square().mean(-1, keepdim=True) + 1e-5) * scale.double()
    assert relative(out, normed) < 5e-3  # the interpreter cuts bf16 off


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", ["none", "add", "glu"])
def test_without_kernels_the_numbers_are_the_same(
    device: str, kind: str, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = drawn(device, TOKENS, 64).bfloat16(), made("dense", drawn(device, 96, 64, seed=1), torch.bfloat16)
    bias = drawn(device, 96, seed=2) if has_bias else None
    scale = drawn(device, 96, seed=4)
    found = []
    for fails in (False, True):
        if fails:
            monkeypatch.setattr(launching, "_failed", {"finish": "", "rms_norm": ""})
            monkeypatch.setattr(launching, "_PLAIN_TOKENS", 40)
        out = drawn(device, TOKENS, 48 if kind == "glu" else 96, seed=3)
        normed = torch.full((TOKENS, 96), torch.nan, dtype=torch.bfloat16, device=device)
        epilogue = Epilogue(kind=kind, softcap=None if kind == "add" else 9.0)  # type: ignore[arg-type]
        long_linear(x, weight, out, bias, epilogue, Following(scale, normed, 1e-5) if kind == "add" else None)
        found.append((out, normed))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-2, equal_nan=True)
    monkeypatch.setattr(launching, "_failed", {})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [96, 1152])  # less and more than a block; the last chunk of int4 is padded
def test_rows_are_decoded_to_the_bit(device: str, form: str, k: int) -> None:
    kept = made(form, drawn(device, 21, -(-k // 128) * 128 if form == "int4g128" else k, seed=1), torch.bfloat16)
    out = torch.full((9, kept.k), torch.nan, device=device)
    decode_slab(kept, 7, out)
    assert torch.equal(out, kept.rows(slice(7, 16)))
    index = torch.tensor([20, 3, 3, 0, 11], dtype=torch.int32, device=device)
    gather_rows(kept, index, out[:5], scale=3.3)
    assert torch.equal(out[:5], kept.rows(index.long()) * 3.3)


@pytest.mark.parametrize("form", ["int8", "int8g", "int4", "fp8"])
@pytest.mark.parametrize("fails", [False, True])
def test_slabs_of_a_packed_weight_make_one_product(
    device: str, form: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = drawn(device, TOKENS, 96)
    weight = made(form, drawn(device, 50, 96, seed=1), torch.float32)
    monkeypatch.setattr(long_products, "slab_rows", lambda *_, **__: 16)
    monkeypatch.setattr(rows, "_PLAIN_ROWS", 5)
    if fails:
        monkeypatch.setattr(launching, "_failed", {f"rows_{weight.form}": ""})
    out = torch.full((TOKENS, 50), torch.nan, device=device)
    linear(x, weight, out, epilogue=Epilogue())
    assert relative(out, x.double() @ weight.rows(slice(None)).double().T) < 1e-6
    monkeypatch.setattr(launching, "_failed", {})


def test_slabs_stay_in_the_cache_and_fill_the_device() -> None:
    assert long_products.MOST_SLAB_ROWS == forms._SLAB_ROWS  # what is planned for
    assert long_products.slab_rows(28672, 4096, 4096, itemsize=2) == 4096
    assert long_products.slab_rows(4096, 14336, 4096, itemsize=2) == 2048
    assert long_products.slab_rows(28672, 4096, 1024, itemsize=2) == 8192
    assert long_products.slab_rows(128256, 4096, 65, itemsize=2) == long_products.MOST_SLAB_ROWS
    assert long_products.slab_rows(1000, 4096, 4096, itemsize=2) == 1000
