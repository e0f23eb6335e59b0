"""Weights of real files keep their numbers on the device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headrace.core.settings import Quantization
from headrace.executor.cuda import load_weights as loading
from headrace.executor.cuda import unpack
from headrace.executor.cuda.load_weights import load_weights
from headrace.executor.cuda.uplink import Uplink
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.model.program import WeightSpec
from headrace.quant.formats import Format, dequantize
from headrace.quant.tensor import Tensor
from tests.gpu.test_queues import LateDevice

# What is lost of each stored format, relative: nothing, scales in fp16, groups of 16 that join.
LOST = {"Q4_1": 0.0, "Q5_0": 0.0, "Q8_0": 0.0, "Q4_K": 1e-3, "Q6_K": 1e-2}
BF16_SCALES = 3e-3  # eight bits: at most 2 ** -9 each, lows a little more


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_auto_keeps_the_numbers_of_the_file(
    model: str, kind: torch.dtype, device: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(model)
    with open_checkpoint(path) as checkpoint:
        program = build_program(checkpoint.config)
        matrices, _ = load_weights(program, checkpoint, quantization="auto", dtype=kind, device=torch.device(device))
        for spec in (spec for spec in program.weights if len(spec.shape) == 2):
            at = 0
            for tensor in map(checkpoint.tensor, spec.parts):
                count = min(32, tensor.shape[0])
                kept = matrices[spec.name].rows(slice(at, at + count)).cpu().numpy()
                stored = tensor.to_float(0, count)
                lost = float(np.linalg.norm(kept - stored) / np.linalg.norm(stored))
                most = LOST[tensor.format.label] + (BF16_SCALES if kind == torch.bfloat16 else 0.0)
                assert lost <= most, (spec.name, tensor.format)
                at += tensor.shape[0]


ON_DEVICE = sorted(unpack.GROUPED | set(unpack.PLAIN), key=str)
# What rounding loses of normal numbers, at most.
ROUNDED: dict[Quantization, float] = {
    "auto": 0.05,
    "bf16": 0.01,
    "int8": 0.02,
    "int4": 0.2,
    "int4-g128": 0.2,
    "fp8": 0.05,
}


def stored_rows(stored: Format, rows: int, k: int) -> np.ndarray:
    """Return random bytes that stand for numbers of some size."""
    random = np.random.RandomState(stored.block_bytes + rows)
    if stored is Format.F16:
        return random.standard_normal((rows, k)).astype(np.float16).view(np.uint8)
    values = random.standard_normal((rows, k)).astype(np.float32)
    if stored is Format.BF16:
        return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    if stored is Format.F32:
        return values.view(np.uint8)
    data = random.randint(0, 256, (rows, stored.row_bytes(k)), np.uint8)
    blocks = data.reshape(-1, stored.block_bytes)
    halves = random.standard_normal((len(blocks), 2)).astype(np.float16).view(np.uint8)
    at = {Format.Q6_K: 208, Format.Q2_K: 80}.get(stored, 0)
    blocks[:, at : at + 2] = halves[:, :2]
    if stored in (Format.Q4_1, Format.Q5_1, Format.Q4_K, Format.Q5_K, Format.Q2_K):
        blocks[:, at + 2 : at + 4] = halves[:, 2:]
    return data


@pytest.mark.parametrize("stored", ON_DEVICE, ids=lambda stored: stored.label)
def test_what_the_device_decodes_is_what_the_host_decodes_to_the_bit(device: str, stored: Format) -> None:
    data = stored_rows(stored, 3, 512)
    sent = torch.from_numpy(data).to(device)
    found = unpack.plain(sent, stored) if stored in unpack.PLAIN else unpack.groups(sent, stored).to_float()
    np.testing.assert_array_equal(found.float().cpu().numpy(), dequantize(stored, data, 512))


@pytest.mark.parametrize("stored", [*ON_DEVICE, Format.Q2_K], ids=lambda stored: stored.label)
def test_every_stored_format_comes_to_every_form(device: str, stored: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_SLAB_ROWS", 2)
    parts = {name: Tensor(name, stored, (3, 512), stored_rows(stored, 3, 512)) for name in ("a", "b")}
    parts["b"].data[:] = parts["b"].data[::-1].copy()
    known = np.concatenate([part.to_float() for part in parts.values()])
    for quantization, most in ROUNDED.items():
        for offset in (0.0, 1.0):
            program = SimpleNamespace(weights=[WeightSpec(name="w", shape=(6, 512), parts=("a", "b"), offset=offset)])
            matrices, _ = load_weights(
                program, SimpleNamespace(tensor=parts.__getitem__),  # type: ignore[arg-type]
                quantization=quantization, dtype=torch.bfloat16, device=torch.device(device),
            )  # fmt: skip
            found = matrices["w"].rows(slice(None)).cpu().numpy()
            lost = np.linalg.norm(found - known - offset) / np.linalg.norm(known + offset)
            assert lost < most, (quantization, offset)


def test_a_buffer_is_filled_again_only_after_its_copy() -> None:
    device = LateDevice(0)
    uplink = Uplink(torch.device("cpu"), device)
    sent = [uplink.bring(np.full((2, 3), i, np.uint8)) for i in range(7)]
    device.finish()
    assert [part.tolist() for part in sent] == [[[i] * 3] * 2 for i in range(7)]
