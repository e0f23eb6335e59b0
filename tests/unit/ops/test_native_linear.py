"""Packing: GGUF blocks keep their codes, rounding is to nearest, any order of blocks gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from headrace.ops.native.library import load_failure
from headrace.quant import Format, dequantize

pytestmark = pytest.mark.skipif(load_failure() is not None, reason=f"no native library: {load_failure()}")
linear = pytest.importorskip("headrace.ops.native.linear")
library = pytest.importorskip("headrace.ops.native.library")

Source, WeightFormat, WeightShape, PackedMatrix = (
    linear.Source,
    linear.WeightFormat,
    linear.WeightShape,
    linear.PackedMatrix,
)
EXACT = (Source.Q4_0, Source.Q4_1, Source.Q5_0, Source.Q5_1, Source.Q8_0)


@pytest.fixture(scope="module")
def pool() -> Iterator[object]:
    with library.Pool(2) as team:
        yield team


def blocks(source: object, n: int, k: int) -> np.ndarray:
    """Random rows of a GGUF block format: any codes, finite scales."""
    random = np.random.default_rng(n * k)
    _, weights, size = Format[source.name].value
    data = random.integers(0, 256, (n, k // weights, size), dtype=np.uint8)
    halves = 1 if source in (Source.Q4_0, Source.Q5_0, Source.Q8_0) else 2
    scales = (random.standard_normal((n, k // weights, halves)) * 0.02).astype(np.float16)
    data[:, :, : 2 * halves] = scales.view(np.uint8)
    return data.reshape(n, -1)


@pytest.mark.parametrize("source", EXACT, ids=str)
@pytest.mark.parametrize("k", [32, 96, 576])
def test_gguf_blocks_repack_without_loss(pool: object, source: object, k: int) -> None:
    rows = blocks(source, 45, k)
    packed = PackedMatrix(linear.exact_shape(source, 45, k))
    assert packed.pack(pool, source, rows) == packed.shape.num_blocks
    assert np.array_equal(packed.to_float(), dequantize(Format[source.name], rows, k))


@pytest.mark.parametrize("source", [Source.Q4_K, Source.Q5_K], ids=str)
def test_k_blocks_repack_within_half_precision_of_their_scales(pool: object, source: object) -> None:
    rows = blocks(source, 33, 512)
    packed = PackedMatrix(linear.exact_shape(source, 33, 512))
    packed.pack(pool, source, rows)
    exact = dequantize(Format[source.name], rows, 512)
    tops = {Source.Q4_K: 15, Source.Q5_K: 31}
    groups = exact.reshape(33, -1, 32)
    span = (groups.max(axis=2) - groups.min(axis=2)) * (tops[source] / 8)  # codes rarely span their whole range
    bias = np.abs(groups).max(axis=2)
    error = np.abs(packed.to_float() - exact).reshape(33, -1, 32).max(axis=2)
    assert (error <= 2.0**-10 * (span + bias) + 2e-6).all()
    relative = np.linalg.norm(packed.to_float() - exact) / np.linalg.norm(exact)
    assert relative < 5e-4


def test_interleaved_blocks_hold_gate_and_up_rows_side_by_side(pool: object) -> None:
    gate, up = blocks(Source.Q4_1, 40, 64), blocks(Source.Q4_1, 40, 64)[::-1].copy()
    packed = PackedMatrix(linear.exact_shape(Source.Q4_1, 80, 64, interleaved=True))
    packed.pack(pool, Source.Q4_1, gate, up)
    expected = dequantize(Format.Q4_1, np.concatenate([gate, up]), 64)
    assert np.array_equal(packed.to_float(), expected)
    assert np.array_equal(packed.to_float(39, 42), expected[39:42])


@pytest.mark.parametrize("kind", [WeightFormat.F32, WeightFormat.BF16, WeightFormat.I8, WeightFormat.I4G], ids=str)
def test_blocks_packed_in_any_order_give_the_same_bytes(pool: object, kind: object) -> None:
    weight = np.random.default_rng(0).standard_normal((150, 100), np.float32)
    shape = WeightShape(format=kind, n=150, k=100, group=32 if kind is WeightFormat.I4G else 0)
    whole = PackedMatrix.from_float(pool, shape, weight)
    parts = PackedMatrix(shape)
    for block in (3, 0, 4, 1):
        end = {3: 4, 0: 1, 4: 5, 1: 3}[block]
        assert parts.pack(pool, Source.F32, weight[block * 32 : end * 32], block=block) == end
    assert np.array_equal(parts.data, whole.data)


@pytest.mark.parametrize("source", [Source.F16, Source.BF16], ids=str)
def test_half_precision_sources_are_read(pool: object, source: object) -> None:
    values = np.random.default_rng(1).standard_normal((20, 40), np.float32)
    if source is Source.F16:
        raw = values.astype(np.float16)
        values = raw.astype(np.float32)
    else:
        raw = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = (raw.astype(np.uint32) << 16).view(np.float32)
    packed = PackedMatrix(WeightShape(format=WeightFormat.F32, n=20, k=40))
    packed.pack(pool, source, raw.view(np.uint8))
    assert np.array_equal(packed.to_float(), values)


@pytest.mark.parametrize(("bits", "kind"), [(4, WeightFormat.I4G), (8, WeightFormat.I8G)])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_rounding_stays_within_half_a_step(pool: object, bits: int, kind: object, asymmetric: bool, group: int) -> None:
    weight = np.random.default_rng(group).standard_normal((37, 256), np.float32)
    shape = WeightShape(format=kind, n=37, k=256, group=group, asymmetric=asymmetric)
    decoded = PackedMatrix.from_float(pool, shape, weight).to_float()
    groups = weight.reshape(37, -1, group)
    if asymmetric:
        step = (groups.max(axis=2) - groups.min(axis=2)) / (2**bits - 1)
    else:
        step = np.abs(groups).max(axis=2) / (2 ** (bits - 1) - (bits == 8))
    bound = step * (0.5 + 0.01 * 2**bits / 16) + 1e-3 * np.abs(groups).max(axis=2)
    error = np.abs(decoded - weight).reshape(37, -1, group)
    if bits == 4 and not asymmetric:  # codes -8 … 7: the far end of the weaker sign may be one step off
        bound = bound + step / 2
    assert (error.max(axis=2) <= bound).all()


def test_padding_costs_at_most_one_block_and_one_step() -> None:
    shape = WeightShape(format=WeightFormat.I4G, n=33, k=65, group=32, asymmetric=True)
    assert shape.packed_bytes == 2 * 2 * (1024 + 4 * 64)
    assert WeightShape(format=WeightFormat.I8, n=32, k=64).packed_bytes == 2048 + 128


@pytest.mark.parametrize(
    ("shape", "source"),
    [
        ({"format": 4, "n": 32, "k": 64, "group": 64}, "Q4_0"),
        ({"format": 4, "n": 32, "k": 64, "group": 32, "asymmetric": True}, "Q4_0"),
        ({"format": 2, "n": 32, "k": 64}, "Q8_0"),
        ({"format": 4, "n": 32, "k": 48, "group": 32}, "Q4_0"),
    ],
)
def test_blocks_go_only_where_their_codes_fit(shape: dict, source: str) -> None:
    wanted = WeightShape(**{**shape, "format": WeightFormat(shape["format"])})
    assert not wanted.can_pack(Source[source])


@pytest.mark.parametrize(
    "shape",
    [
        {"format": WeightFormat.I4G, "n": 32, "k": 64, "group": 16},
        {"format": WeightFormat.I8, "n": 32, "k": 64, "group": 32},
        {"format": WeightFormat.I8, "n": 0, "k": 64},
        {"format": WeightFormat.BF16, "n": 33, "k": 64, "interleaved": True},
    ],
)
def test_shapes_without_a_layout_are_refused(shape: dict) -> None:
    with pytest.raises(ValueError, match="no packed layout"):
        _ = WeightShape(**shape).packed_bytes


def test_wrong_rows_and_buffers_are_refused(pool: object) -> None:
    packed = PackedMatrix(WeightShape(format=WeightFormat.I8, n=64, k=32))
    with pytest.raises(ValueError, match="31 rows given"):
        packed.pack(pool, Source.F32, np.zeros((31, 32), np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        linear.linear(pool, packed, np.zeros((2, 31), np.float32))
    with pytest.raises(ValueError, match="aligned"):
        PackedMatrix(packed.shape, linear.aligned_bytes(packed.shape.packed_bytes + 64)[1:-63])
