"""Decoding of every storage format, against vectors that an independent reader made."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from headrace.quant import Format, dequantize

GOLDEN = Path(__file__).parents[2] / "golden" / "quant_formats.npz"


@pytest.mark.parametrize("format", list(Format), ids=lambda f: f.label)
def test_every_format_decodes_to_the_last_bit(format: Format) -> None:
    with np.load(GOLDEN) as golden:
        data, expected = golden[f"{format.label}_data"], golden[f"{format.label}_floats"]
    decoded = dequantize(format, data, expected.shape[1])
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded.view(np.uint32), expected.view(np.uint32))
    assert np.abs(decoded).max() > 0


@pytest.mark.parametrize("format", list(Format), ids=lambda f: f.label)
def test_rows_decode_alone_as_they_do_together_and_unaligned(format: Format) -> None:
    with np.load(GOLDEN) as golden:
        data = golden[f"{format.label}_data"]
    shifted = np.empty(data.size + 1, np.uint8)
    shifted[1:] = data.ravel()
    view = shifted[1:].reshape(data.shape)
    together = dequantize(format, view, 512)
    alone = np.concatenate([dequantize(format, view[i : i + 1], 512) for i in range(len(view))])
    assert np.array_equal(together, alone)


def test_chunks_do_not_show_in_the_result() -> None:
    rng = np.random.default_rng(0)
    k = 768
    values = rng.integers(-127, 128, (1000, k // 32, 32), dtype=np.int8)
    data = np.empty((1000, k // 32, 34), np.uint8)
    data[..., :2] = np.array([0.5], "<f2").view(np.uint8)
    data[..., 2:] = values.view(np.uint8)
    decoded = dequantize(Format.Q8_0, data.reshape(1000, -1), k)
    assert np.array_equal(decoded, values.reshape(1000, k) * np.float32(0.5))


@pytest.mark.parametrize("format", [Format.Q8_0, Format.Q3_K, Format.Q6_K, Format.BF16], ids=lambda f: f.label)
def test_temporary_memory_stays_bounded_while_a_large_tensor_decodes(format: Format) -> None:
    rows, k = 4096, 2048
    data = np.zeros((rows, format.row_bytes(k)), np.uint8)
    tracemalloc.start()
    try:
        out = dequantize(format, data, k)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - out.nbytes < 16 << 20


def test_no_rows_decode_to_no_rows() -> None:
    assert dequantize(Format.Q4_0, np.empty((0, 18), np.uint8), 32).shape == (0, 32)


def test_a_row_that_is_not_whole_blocks_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="multiple of 256 weights, not 300"):
        Format.Q4_K.row_bytes(300)


def test_bytes_that_do_not_hold_the_row_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[rows, 36\]"):
        dequantize(Format.Q4_0, np.zeros((1, 18), np.uint8), 64)


def test_a_nan_scale_makes_nan_weights_and_no_warning() -> None:
    data = np.full((1, 84), 0xFF, np.uint8)
    assert np.isnan(dequantize(Format.Q2_K, data, 256)).all()
