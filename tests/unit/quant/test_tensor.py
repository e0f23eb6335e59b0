"""A stored tensor hands out just the rows that are asked for."""

from __future__ import annotations

import numpy as np

from headrace.quant import Format, Tensor


def matrix() -> Tensor:
    values = np.arange(24, dtype="<f4").reshape(4, 6)
    return Tensor("w", Format.F32, (4, 6), values.view(np.uint8))


def test_a_range_of_rows_decodes_to_that_range() -> None:
    assert matrix().to_float(1, 3).tolist() == np.arange(6, 18).reshape(2, 6).tolist()


def test_a_vector_decodes_to_one_axis() -> None:
    tensor = Tensor("b", Format.F32, (5,), np.arange(5, dtype="<f4").view(np.uint8).reshape(1, -1))
    assert tensor.to_float().tolist() == [0, 1, 2, 3, 4]


def test_rows_taken_in_another_order_keep_their_bytes() -> None:
    order = np.array([3, 0, 2, 1])
    assert np.array_equal(matrix().take_rows(order).to_float(), matrix().to_float()[order])
