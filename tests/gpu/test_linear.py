"""Skinny products in every form of weight, with every epilogue, against float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from headrace.ops import reference
from headrace.ops.cuda import linear as linear_module
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.linear import linear
from headrace.ops.cuda.norm import Following
from headrace.ops.cuda.tiling import Tiling
from headrace.ops.cuda.weights import Weight, dense, fp8, int4, int8

PACKED = ["int8", "int8g", "int4", "int4g128"]
FORMS = ["dense", *PACKED, "fp8"]


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


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("k", [96, 448, 1376])  # whole groups, but neither whole chunks nor whole turns
@pytest.mark.parametrize("form", FORMS)
def test_inputs_past_the_last_chunk_count_for_nothing(device: str, form: str, k: int, tokens: int) -> None:
    if form == "int4g128":
        k = k // 128 * 128 + 128
    x = drawn(device, tokens, k).bfloat16()
    weight = made(form, drawn(device, 24, k, seed=1), torch.bfloat16)
    out = torch.full((tokens, 24), torch.nan, device=device)
    linear(x, weight, out, epilogue=Epilogue())
    assert relative(out, x.double() @ weight.rows(slice(None)).double().T) < 8e-3


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


@pytest.fixture
def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What falls back is right too, only slower."""

    def refuse(*_: object) -> None:
        raise AssertionError("given to the library")

    monkeypatch.setattr(linear_module, "long_linear", refuse)


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize(
    ("form", "tokens"),
    [(form, 65) for form in PACKED] + [("int4", 100), ("int8", 128), ("int4g128", 200), ("int8g", 256)],
)
def test_many_tokens_are_multiplied_with_packed_weights(device: str, form: str, tokens: int) -> None:
    k = 256 if form == "int4g128" else 224
    x = drawn(device, tokens, k).bfloat16()
    weight = made(form, drawn(device, 50, k, seed=1), torch.bfloat16)
    out = torch.full((tokens, 50), torch.nan, dtype=torch.bfloat16, device=device)
    linear(x, weight, out, epilogue=Epilogue())
    assert relative(out, x.double() @ weight.rows(slice(None)).double().T) < 8e-3


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize(("form", "block_n", "num_parts"), [("int4", 128, 3), ("int8g", 256, 1), ("int4", 256, 2)])
@pytest.mark.parametrize("kind", ["none", "add", "glu"])
def test_every_epilogue_is_applied_to_two_tiles_of_tokens(
    device: str, form: str, block_n: int, num_parts: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, k = block_n + 44, num_parts * 128
    x = drawn(device, 200, k).bfloat16() / k**0.5
    weight = made(form, drawn(device, n, k, seed=1), torch.bfloat16)
    bias, out = drawn(device, n, seed=2), drawn(device, 200, n // 2 if kind == "glu" else n, seed=3)
    expected = x.double() @ weight.rows(slice(None)).double().T + bias.double()
    if kind == "glu":
        expected = torch.from_numpy(reference.glu(expected.float().cpu().numpy(), "silu")).to(device).double()
    elif kind == "add":
        expected = expected + out.double()
    tile = Tiling(
        block_n=block_n, block_t=128, block_k=128, num_turns=1, num_parts=num_parts, buffers=3, num_warps=8
    )  # fmt: skip
    monkeypatch.setattr(linear_module, "tile_of", lambda *_: tile)
    linear(x, weight, out, bias=bias, epilogue=Epilogue(kind=kind))  # type: ignore[arg-type]
    assert relative(out, expected) < 6e-3  # the interpreter cuts bf16 weights off


@pytest.mark.parametrize(("form", "tokens"), [("dense", 65), ("fp8", 65), ("int8", 257), ("int4", 257)])
def test_more_tokens_than_pay_here_go_to_the_library(
    device: str, form: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr(linear_module, "long_linear", lambda *all_of_it: given.append(all_of_it))
    x, weight = drawn(device, tokens, 128).bfloat16(), made(form, drawn(device, 32, 128), torch.bfloat16)
    out = torch.empty((tokens, 32), dtype=torch.bfloat16, device=device)
    linear(x, weight, out, epilogue=Epilogue())
    linear(x[:-1], weight, out[:-1], epilogue=Epilogue())
    assert len(given) == 1


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


def normed(device: str, form: str, kind: torch.dtype, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (sum, result, what they should be side by side) of a product added to a sum, its norm, a gated product."""
    first, second = (made(form, drawn(device, *shape, seed=1) * 0.1, kind) for shape in ((192, 512), (96, 192)))
    weight, total = drawn(device, 192, seed=2).abs(), drawn(device, tokens, 192, seed=3) * 3
    x = drawn(device, tokens, 512).to(kind)
    wanted = total.double() + x.double() @ first.rows(slice(None)).double().T
    h = wanted / (wanted.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    gate, up = (h @ second.rows(slice(None)).double().T).chunk(2, -1)
    norm = torch.full((tokens, 192), torch.nan, dtype=kind, device=device)
    out = torch.full((tokens, 48), torch.nan, dtype=kind, device=device)
    after = Following(weight, norm, 1e-5)
    left = linear(x, first, total, epilogue=Epilogue(kind="add"), following=after)
    linear(norm, second, out, epilogue=Epilogue(kind="glu"), squares=left)
    return total, out, torch.cat((wanted, gate * torch.sigmoid(gate) * up), -1)


@pytest.mark.parametrize("form", ["dense", "int8", "int4", "fp8"])
@pytest.mark.parametrize(("kind", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_two_products_take_over_the_norm_between_them(
    device: str, form: str, kind: torch.dtype, error: float, tokens: int
) -> None:
    total, out, wanted = normed(device, form, kind, tokens)  # in bf16 the interpreter cuts bits off: a gate's twice
    assert relative(total, wanted[:, :192]) < error
    assert relative(out, wanted[:, 192:]) < error


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize(("form", "tokens"), [("int8", 200), ("int4", 100)])
def test_a_norm_is_taken_over_by_products_of_many_tokens(device: str, form: str, tokens: int) -> None:
    total, out, wanted = normed(device, form, torch.bfloat16, tokens)
    assert relative(total, wanted[:, :192]) < 2e-2
    assert relative(out, wanted[:, 192:]) < 2e-2


@pytest.mark.parametrize("failing", [(1,), (2,), (1, 2)])
def test_a_norm_between_products_is_whole_where_one_cannot_be_compiled(
    device: str, failing: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count(1)
    launch = linear_module.attempt
    monkeypatch.setattr(linear_module, "attempt", lambda *given: next(calls) not in failing and launch(*given))
    total, out, wanted = normed(device, "dense", torch.float32, 3)
    assert relative(total, wanted[:, :192]) < 1e-6
    assert relative(out, wanted[:, 192:]) < 1e-6
