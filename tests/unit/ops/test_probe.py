"""The probe measures, quickly and with any number of threads."""

from __future__ import annotations

import pytest

from headrace.ops.probe import read_bandwidth


@pytest.mark.parametrize("num_threads", [1, 3])
def test_bandwidth_is_a_plausible_rate(num_threads: int) -> None:
    rate = read_bandwidth(num_threads, size_bytes=16 << 20, passes=2)
    assert 1e8 < rate < 1e13
