"""Limits of the machine are measured quickly and make sense."""

from __future__ import annotations

import pytest

from tests.parity.native_drive import needs_native

pytestmark = needs_native
limits = pytest.importorskip("headrace.ops.native.limits", reason="no native library")


@pytest.mark.parametrize("num_threads", [1, 2])
def test_limits_are_plausible_rates(num_threads: int) -> None:
    found = limits.measure_limits(num_threads, read_bytes=16 << 20, passes=2)
    assert 1e8 < found.read_bytes_per_s < 1e13
    assert 1e8 < found.bf16_ops_per_s < 1e15
    assert 1e8 < found.int8_ops_per_s < 1e15
