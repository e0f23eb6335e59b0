"""Tokens rounded to e4m3: the numbers of the plain op wherever they are made, and whole steps of fp8 products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.executor.cuda import model
from headrace.ops.cuda import launching, long_products
from headrace.ops.cuda.e4m3 import Rounded, room_in, round_plain, round_tokens
from headrace.ops.cuda.epilogue import Epilogue
from headrace.ops.cuda.finish import finish
from headrace.ops.cuda.norm import Following, add_rms_norm, rms_norm, rms_norm_add
from headrace.ops.cuda.weights import Weight
from headrace.testing.checkpoints import write_checkpoint
from tests.gpu.test_executor import cuda, prompts, reference
from tests.gpu.test_linear import drawn, relative
from tests.parity.drive import scored_step


def assert_rounded(found: Rounded, x: torch.Tensor) -> None:
    """The numbers are those that torch's ops make of tokens in bf16."""
    scales = (x.float().abs().amax(-1, keepdim=True) / 448.0).clamp(min=1e-30)
    assert torch.equal(found.scales, scales)
    assert torch.equal(found.values.float(), (x.float() / scales).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("k", [64, 1200])
@pytest.mark.parametrize("fails", [False, True])
def test_tokens_are_rounded_by_their_own_largest(
    device: str, k: int, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fails:
        monkeypatch.setattr(launching, "_failed", {"round_tokens": ""})
        monkeypatch.setattr(launching, "_PLAIN_TOKENS", 3)
    sizes = torch.tensor([[1e-3], [1.0], [900.0], [0.0]], device=device)
    x = (drawn(device, 4, k) * sizes * torch.logspace(-4, 0, k, device=device)).bfloat16()
    found = round_tokens(x)
    assert_rounded(found, x)
    assert bool((found.values[:3].float().abs().amax(-1) == 448.0).all())
    assert relative(found.values[:3].float() * found.scales[:3], x[:3].double()) < 0.04
    monkeypatch.setattr(launching, "_failed", {})


def test_a_quotient_by_two_fused_steps_is_the_rounded_one() -> None:
    """What the kernel does on a GPU, with fused steps taken in float64: every number of bf16 by scales of any size."""
    f = np.float32
    bits = np.arange(1 << 7, dtype=np.uint32)
    y = ((127 << 7 | bits) << 16).view(f)
    largest = f(10.0) ** np.random.RandomState(0).uniform(-9, 9, 400).astype(f)
    for scale in largest / f(448.0):
        spread = y * (scale * f(2.0) ** np.arange(-12, 9, dtype=f)[:, None])
        numbers = torch.from_numpy(spread.astype(f)).bfloat16().float().numpy()
        inverse = f(1.0) / scale
        quotient = numbers * inverse
        left = (numbers.astype(np.float64) - quotient.astype(np.float64) * np.float64(scale)).astype(f)
        found = (quotient.astype(np.float64) + left.astype(np.float64) * np.float64(inverse)).astype(f)
        np.testing.assert_array_equal(found, numbers / scale)


@pytest.mark.parametrize("is_summed", [False, True])
def test_a_norm_rounds_what_it_would_have_written(device: str, is_summed: bool) -> None:
    x, weight = drawn(device, 5, 96).bfloat16(), drawn(device, 96, seed=1)
    plain = torch.empty((5, 96), dtype=torch.bfloat16, device=device)
    into = room_in(torch.empty_like(plain))
    for dst in (plain, into):
        if is_summed:
            total = drawn(device, 5, 96, seed=2)
            add_rms_norm(x, weight, total, Following(weight, dst, 1e-5))
            rms_norm_add(x, weight, total, eps=1e-6, following=Following(weight, dst, 1e-5))
        else:
            rms_norm(x, weight, dst, eps=1e-5)
    assert_rounded(into, plain)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_gated_product_is_rounded_as_it_would_have_been_written(
    device: str, has_bias: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = drawn(device, 5, 2 * 1104).bfloat16()
    bias = drawn(device, 2 * 1104, seed=2) if has_bias else None
    plain = torch.empty((5, 1104), dtype=torch.bfloat16, device=device)
    into = room_in(torch.empty_like(plain))
    if fails:
        monkeypatch.setattr(launching, "_failed", {"finish": "", "finish_e4m3": ""})
    for dst in (plain, into):
        finish(product, dst, bias, Epilogue(kind="glu"))
    assert_rounded(into, plain)
    monkeypatch.setattr(launching, "_failed", {})


def test_rounded_tokens_lie_in_a_slot_of_bf16_beside_each_other() -> None:
    slot = torch.zeros((6, 32), dtype=torch.bfloat16)
    room = room_in(slot)
    x = torch.randn(4, 32).bfloat16()
    round_plain(x, room.first(4))
    assert_rounded(room.first(4), x)
    assert room.values.untyped_storage().data_ptr() == slot.untyped_storage().data_ptr()
    assert not room.scales[4:].any()
    assert not room.values[4:].float().any()


def test_a_step_of_many_tokens_multiplies_what_kernels_rounded(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path / "llama", "llama")
    step = scored_step(prompts(3, (70,))[0], 3)
    expected = reference(path).launch(step).result().scored[0]
    rounded_late: list[int] = []
    products: list[int] = []

    def multiplied(x: Rounded, weight: Weight, out: torch.Tensor) -> None:
        products.append(len(x.values))
        wide = x.values.float() * x.scales
        out.copy_(wide @ weight.rows(slice(None)).T)

    def rounded(x: torch.Tensor) -> Rounded:
        rounded_late.append(len(x))
        return round_tokens(x)

    if device == "cpu":  # which multiplies no e4m3
        monkeypatch.setattr(long_products, "multiply_e4m3", multiplied)
        for module in (model, long_products):
            monkeypatch.setattr(module, "multiplies_e4m3", lambda x: x.dtype == torch.bfloat16)
    monkeypatch.setattr(long_products, "round_tokens", rounded)
    executor = cuda(path, device, dtype="bfloat16", quantization="fp8", max_step_tokens=96)
    result = executor.launch(step).result()
    executor.shutdown()
    assert result.failures == {}
    assert np.mean([abs(a.logprob - b.logprob) for a, b in zip(result.scored[0], expected, strict=True)]) < 0.3
    # Of the second and last layer only tokens that are scored go on behind attention.
    assert rounded_late == [70, 69]  # attention's numbers, which no kernel of ours rounds
    assert products == ([70] * 5 + [69] * 3 if device == "cpu" else [])
