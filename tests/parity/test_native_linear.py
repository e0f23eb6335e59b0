"""Packed linear layers of every instruction set: against numpy, bit for bit where integers or order are promised."""

from __future__ import annotations

from collections.abc import Iterator
from math import erf

import numpy as np
import pytest

from tests.parity.fences import SIDES, Side, fenced, fenced_bytes
from tests.parity.linear_cases import (
    FORMATS,
    ROW_COUNTS,
    SIZES,
    exact_product,
    quantized,
    rotated,
    seen_by_kernel,
    shape_of,
)
from tests.parity.native_drive import ISAS, forced, needs_native

pytestmark = needs_native
linear = pytest.importorskip("headrace.ops.native.linear", reason="no native library")
library = pytest.importorskip("headrace.ops.native.library", reason="no native library")

WeightFormat, PackedMatrix = linear.WeightFormat, linear.PackedMatrix


@pytest.fixture(scope="module")
def pools() -> Iterator[list]:
    """Teams of one and of two threads."""
    with library.Pool(1) as one, library.Pool(2) as two:
        yield [one, two]


@pytest.fixture(params=[*ISAS, *([library.EMULATED_ISA] if library.can_emulate_tiles() else [])])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with forced(request.param):
        yield request.param


@pytest.mark.parametrize("case", FORMATS, ids=str)
def test_output_is_the_product_of_what_was_packed_and_prepared(isa: str, pools: list, case: tuple) -> None:
    random = np.random.default_rng(1)
    for n, k in SIZES:
        source, x = random.standard_normal((n, k), np.float32), random.standard_normal((19, k), np.float32)
        shape = shape_of(case, n, k)
        exact, size = exact_product(pools[1], shape, source, x)
        error = np.abs(linear.linear(pools[1], PackedMatrix.from_float(pools[1], shape, source), x) - exact)
        assert (error <= 2e-6 * size + 1e-30).all(), (n, k, float((error / size).max()))


@pytest.mark.parametrize("case", FORMATS, ids=str)
def test_a_row_is_the_same_bits_whatever_the_batch_and_the_threads(isa: str, pools: list, case: tuple) -> None:
    random = np.random.default_rng(2)
    for n, k in SIZES:
        weight = PackedMatrix.from_float(pools[1], shape_of(case, n, k), random.standard_normal((n, k), np.float32))
        x = random.standard_normal((max(ROW_COUNTS), k), np.float32)
        alone = linear.linear(pools[0], weight, x)
        for rows in ROW_COUNTS:
            for pool in pools:
                start = (rows * 7) % (len(x) - rows + 1)
                assert np.array_equal(linear.linear(pool, weight, x[start : start + rows]), alone[start : start + rows])


@pytest.mark.parametrize("case", [case for case in FORMATS if case[0] in (WeightFormat.I8G, WeightFormat.I4G)], ids=str)
def test_integer_sums_are_exact(isa: str, pools: list, case: tuple) -> None:
    """Weights and activations that are integers at scale 1: every output is an integer that fp32 holds."""
    random = np.random.default_rng(3)
    kind, group, asymmetric = case
    n, k = 45, 300
    top = 15 if kind is WeightFormat.I4G else 255
    low = 0 if asymmetric else -(top + 1) // 2
    weight = random.integers(low, low + top, (n, k), endpoint=True)
    x = random.integers(-127, 127, (17, k), endpoint=True)
    for start in range(0, k, group):  # both ends in every group fix its scale at 1
        weight[:, start], weight[:, start + 1], x[:, start] = low, low + top, 127
        if kind is WeightFormat.I8G and not asymmetric:
            weight[:, start] = -127
            weight[:, start + 1 :][:, : group - 1] = np.maximum(weight[:, start + 1 :][:, : group - 1], -127)
    packed = PackedMatrix.from_float(pools[1], shape_of(case, n, k), weight.astype(np.float32))
    assert np.array_equal(packed.to_float(), weight)
    assert np.array_equal(linear.linear(pools[1], packed, x.astype(np.float32)), x @ weight.T)


def test_int8_output_is_bit_equal_to_numpy(isa: str, pools: list) -> None:
    random = np.random.default_rng(4)
    for n, k in SIZES:
        weight = random.standard_normal((n, k), np.float32)
        packed = PackedMatrix.from_float(pools[1], shape_of((WeightFormat.I8, 0, False), n, k), weight)
        x = random.standard_normal((33, k), np.float32) * 3
        amax = np.abs(weight).max(axis=1)
        codes = np.rint(weight * (np.float32(127) / amax)[:, None]).astype(np.int64)
        acts, scales = quantized(x, 0)
        expected = (acts @ codes.T).astype(np.float32) * ((amax / np.float32(127)) * scales)
        assert np.array_equal(linear.linear(pools[1], packed, x), expected)


@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_activations_are_quantized_by_the_stated_rule(isa: str, group: int) -> None:
    random = np.random.default_rng(5)
    kind = WeightFormat.I4G if group else WeightFormat.I8
    for k in (1, 31, 64, 100, 576):
        shape = shape_of((kind, group, False), 32, k)
        x = random.standard_normal((6, k), np.float32)
        x[1], x[2], x[3, 0] = 0, 1e-38, 1e30
        x[4] = np.rint(x[4] * 3) / 2  # ties
        codes, scales = quantized(x, group)
        records = linear.prepare(shape, x).reshape(6, -1)
        assert np.array_equal(records[:, :k].view(np.int8), codes)
        meta = -(-k // max(group, 64)) * max(group, 64)
        found = records[:, meta : meta + 4 * scales.shape[1]].copy().view(np.float32)
        assert np.array_equal(found, scales)


@pytest.mark.parametrize("group", [64, 192, 256])
def test_rotated_activations_are_the_same_bits_on_every_isa(isa: str, group: int) -> None:
    random = np.random.default_rng(10)
    for k in (1, 63, 64, 300, 576):
        shape = shape_of((WeightFormat.I8R, group, False), 32, k)
        x = random.standard_normal((5, k), np.float32)
        x[1], x[2, 0] = 0, 1e30
        codes, scales = quantized(rotated(x, group), group)
        records = linear.prepare(shape, x).reshape(5, -1)
        meta = codes.shape[1]
        assert np.array_equal(records[:, :meta].view(np.int8), codes)
        found = records[:, meta : meta + 4 * scales.shape[1]].copy().view(np.float32)
        assert np.array_equal(found, scales / np.float32(8))


def test_rotation_spreads_what_sticks_out(pools: list) -> None:
    """One channel a hundred times the others: a scale for 256 numbers keeps what a scale for 32 loses."""
    random = np.random.default_rng(11)
    weight = random.standard_normal((64, 512), np.float32)
    x = random.standard_normal((8, 512), np.float32)
    x[:, 7] *= 100
    exact = x.astype(np.float64) @ weight.T
    errors = []
    for case in ((WeightFormat.I8R, 256, False), (WeightFormat.I8G, 32, False), (WeightFormat.I8, 0, False)):
        packed = PackedMatrix.from_float(pools[1], shape_of(case, 64, 512), weight)
        errors.append(float(np.square(linear.linear(pools[1], packed, x) - exact).mean()))
    assert errors[0] < errors[1] < errors[2]


def _activation(name: str, x: np.ndarray) -> np.ndarray:
    match name:
        case "silu":
            return x / (1 + np.exp(-x))
        case "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        case "gelu":
            return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))
        case _:
            return np.maximum(x, 0) ** 2


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu", "relu2"])
@pytest.mark.parametrize("case", [FORMATS[0], FORMATS[2], FORMATS[9]], ids=str)
def test_glu_gates_in_the_epilogue(isa: str, pools: list, case: tuple, activation: str) -> None:
    random = np.random.default_rng(6)
    for width in (16, 40, 7):
        shape = shape_of(case, 2 * width, 96, interleaved=True)
        weight = PackedMatrix.from_float(pools[1], shape, random.standard_normal((2 * width, 96), np.float32))
        bias = random.standard_normal(2 * width, np.float32)
        x = random.standard_normal((9, 96), np.float32)
        both = seen_by_kernel(shape, x) @ weight.to_float().astype(np.float64).T + bias
        expected = _activation(activation, both[:, :width]) * both[:, width:]
        got = linear.linear(
            pools[1], weight, x, bias=linear.interleave_bias(bias), epilogue="glu", activation=activation
        )
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("case", FORMATS, ids=str)
def test_add_and_bias_touch_their_columns_only(isa: str, pools: list, case: tuple) -> None:
    random = np.random.default_rng(7)
    n, k, rows = 45, 70, 5
    weight = PackedMatrix.from_float(pools[1], shape_of(case, n, k), random.standard_normal((n, k), np.float32))
    x, bias = random.standard_normal((rows, k), np.float32), random.standard_normal(n, np.float32)
    plain = linear.linear(pools[1], weight, x)
    wide = np.full((rows + 1, n + 9), np.nan, np.float32)  # poisoned: what is not written stays NaN
    linear.linear(pools[1], weight, x, bias=bias, out=wide[:rows, :n])
    assert np.array_equal(wide[:rows, :n], plain + bias)
    assert np.isnan(wide[rows]).all()
    assert np.isnan(wide[:, n:]).all()
    residual = random.standard_normal((rows, n), np.float32)
    added = residual.copy()
    linear.linear(pools[1], weight, x, epilogue="add", out=added)
    assert np.array_equal(added, plain + residual)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", FORMATS, ids=str)
def test_a_row_that_is_not_finite_shows_it_and_spares_the_others(
    isa: str, pools: list, case: tuple, bad: float
) -> None:
    random = np.random.default_rng(8)
    weight = PackedMatrix.from_float(pools[1], shape_of(case, 40, 130), random.standard_normal((40, 130), np.float32))
    x = random.standard_normal((7, 130), np.float32)
    clean = linear.linear(pools[1], weight, x)
    x[3, 77] = bad
    spoiled = linear.linear(pools[1], weight, x)
    assert not np.isfinite(spoiled[3]).any()
    assert np.array_equal(np.delete(spoiled, 3, axis=0), np.delete(clean, 3, axis=0))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", FORMATS, ids=str)
def test_no_byte_outside_any_buffer_is_touched(
    isa: str, pools: list, case: tuple, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(9)
    for n, k, rows, activation in ((33, 100, 5, ""), (1, 1, 1, ""), (64, 64, 17, "gelu"), (46, 577, 3, "relu2")):
        for epilogue in ("glu", "add") if activation else ("none",):
            shape = shape_of(case, n, k, interleaved=epilogue == "glu")
            half = n // 2
            width, columns = (half, 2 * -(-half // 16) * 16) if epilogue == "glu" else (n, n)
            source = random.standard_normal((n, k), np.float32)
            values, bias = random.standard_normal((rows, k), np.float32), random.standard_normal(columns, np.float32)
            before = random.standard_normal((rows, width), np.float32)
            options = {"epilogue": epilogue, "activation": activation or "silu"}
            plain = PackedMatrix.from_float(pools[0], shape, source)
            expected = linear.linear(pools[0], plain, values, bias=bias, out=before.copy(), **options)
            with monkeypatch.context() as patch:
                patch.setattr(linear, "aligned_bytes", lambda size: fenced_bytes(size, side, alignment=64))
                weight, raw = PackedMatrix(shape), fenced(source, side)
                weight.pack(pools[1], linear.Source.F32, *((raw[:half], raw[half:]) if epilogue == "glu" else (raw,)))
                out = fenced(before, side)
                linear.linear(pools[1], weight, fenced(values, side), bias=fenced(bias, side), out=out, **options)
            assert np.array_equal(out, expected)
            assert np.array_equal(weight.data, plain.data)


def test_random_shapes_agree_with_numpy(isa: str, pools: list) -> None:
    random = np.random.default_rng(10)
    for _ in range(40):
        case = FORMATS[random.integers(len(FORMATS))]
        n, k, rows = (int(random.integers(1, high)) for high in (150, 400, 40))
        shape = shape_of(case, n, k)
        source = random.standard_normal((n, k), np.float32)
        x = (random.standard_normal((rows, k)) * 10.0 ** random.integers(-6, 6)).astype(np.float32)
        exact, size = exact_product(pools[1], shape, source, x)
        weight = PackedMatrix.from_float(pools[1], shape, source)
        error = np.abs(linear.linear(pools[int(random.integers(2))], weight, x) - exact)
        assert (error <= 2e-6 * size).all(), (case, n, k, rows)


@pytest.mark.skipif(not library.can_emulate_tiles(), reason="the tile path needs AVX-512 with BF16")
def test_the_check_at_load_passes_for_the_tile_path() -> None:
    with forced(library.EMULATED_ISA):
        assert library.library().hr_check_tiles() == 1
    assert not library.tiles_failed()
