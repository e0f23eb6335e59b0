"""Skinny products in every form of weight, with every epilogue, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headrace.ops import reference
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.linear import linear
from headrace.ops.cuda.weights import Weight, dense, fp8, int4, int8

FORMS = ["dense", "int8", "int8g", "int4", "int4g128", "fp8"]


def drawn(device: str, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32)).to(device)


def made(form: str, values: torch.Tensor, kind: torch.dtype) -> Weight:
    match form:
        case "dense":
            return dense(values.to(kind))
        case "int8":
            return int8(values)
        case "int8g":
            return int8(values, group=32)
        case "int4":
            return int4(values)
        case "int4g128":
            return int4(values, group=128)
        case _:
            return fp8(values)


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_gives_back_what_it_was_made_of(device: str, form: str) -> None:
    values = drawn(device, 24, 256, seed=1)
    weight = made(form, values, torch.float32)
    limit = {"dense": 0.0, "int8": 0.02, "int8g": 0.01, "int4": 0.09, "int4g128": 0.12, "fp8": 0.04}[form]
    assert relative(weight.rows(slice(None)), values.double()) <= limit
    some = torch.tensor([3, 3, 20], device=device)
    assert torch.equal(weight.rows(some), weight.rows(slice(None))[some])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 2e-3)])
def test_a_product_is_that_of_the_decoded_weight(device: str, form: str, kind: torch.dtype, error: float) -> None:
    x = drawn(device, 3, 384).to(kind)
    weight = made(form, drawn(device, 80, 384, seed=1), kind)
    out = torch.full((3, 80), torch.nan, dtype=kind, device=device)
    linear(x, weight, out, epilogue=Epilogue())
    assert relative(out, x.double() @ weight.rows(slice(None)).double().T) < error


@pytest.mark.parametrize("tokens", [1, 17, 70])
@pytest.mark.parametrize("form", ["dense", "int4", "fp8"])
def test_a_product_fits_any_shape(device: str, tokens: int, form: str) -> None:
    x = drawn(device, tokens, 96)
    weight = made(form, drawn(device, 50, 96, seed=1), torch.float32)
    out = torch.full((tokens, 50), torch.nan, device=device)
    linear(x, weight, out, epilogue=Epilogue())
    assert relative(out, x.double() @ weight.rows(slice(None)).double().T) < 1e-6


@pytest.mark.parametrize("form", ["dense", "int8", "int4"])
@pytest.mark.parametrize("k", [128, 1024])  # one part, and several that are added up
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", ["none", "add", "glu"])
def test_every_epilogue_is_applied(device: str, form: str, k: int, has_bias: bool, kind: str) -> None:
    x = drawn(device, 5, k) / k**0.5
    weight = made(form, drawn(device, 64, k, seed=1), torch.float32)
    bias = drawn(device, 64, seed=2) if has_bias else None
    out = drawn(device, 5, 32 if kind == "glu" else 64, seed=3)
    expected = x.double() @ weight.rows(slice(None)).double().T + (0 if bias is None else bias.double())
    if kind == "glu":
        expected = torch.from_numpy(reference.glu(expected.float().cpu().numpy(), "silu")).to(device).double()
    elif kind == "add":
        expected = expected + out.double()
    linear(x, weight, out, bias=bias, epilogue=Epilogue(kind=kind))  # type: ignore[arg-type]
    assert relative(out, expected) < 1e-6


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu", "relu2"])
@pytest.mark.parametrize("tokens", [2, 66])
def test_activations_are_those_of_the_reference(device: str, activation: str, tokens: int) -> None:
    x = drawn(device, tokens, 64)
    weight = dense(drawn(device, 32, 64, seed=1))
    out = torch.full((tokens, 16), torch.nan, device=device)
    linear(x, weight, out, epilogue=Epilogue(kind="glu", activation=activation))  # type: ignore[arg-type]
    product = (x @ weight.values.T).cpu().numpy()
    expected = reference.glu(product, activation)  # type: ignore[arg-type]
    np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=1e-4, atol=2e-5)


def test_a_head_scales_and_caps(device: str) -> None:
    x, weight = drawn(device, 4, 64), dense(drawn(device, 48, 64, seed=1))
    out = torch.full((4, 48), torch.nan, device=device)
    linear(x, weight, out, epilogue=Epilogue(scale=0.5, softcap=3.0))
    expected = reference.head(x.cpu().numpy(), weight.values.cpu().numpy(), scale=0.5, softcap=3.0)
    np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["dense", "int4", "fp8"])
def test_an_invariant_product_is_the_same_in_any_batch(device: str, form: str) -> None:
    x = drawn(device, 70, 320).bfloat16()
    weight = made(form, drawn(device, 40, 320, seed=1), torch.bfloat16)
    whole, alone = (torch.empty((tokens, 40), device=device) for tokens in (70, 1))
    linear(x, weight, whole, epilogue=Epilogue(), is_invariant=True)
    for token in (0, 33, 69):
        linear(x[token : token + 1], weight, alone, epilogue=Epilogue(), is_invariant=True)
        # On a GPU to the bit. The interpreter multiplies with numpy, whose sums depend on a row's place in its tile.
        error = 0.0 if device == "cuda" else 1e-5
        assert torch.allclose(alone[0], whole[token], rtol=error, atol=error)
