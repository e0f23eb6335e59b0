"""Rates and shares follow from work, limits and time."""

from __future__ import annotations

from headrace.bench.offline import OfflineReport, OfflineShape, Spread
from headrace.bench.process import peak_memory_bytes, seconds_since_start
from headrace.bench.utilization import Work, compare
from headrace.ops.native.limits import MachineLimits


def test_shares_are_time_at_the_limit_over_time_taken() -> None:
    limits = MachineLimits(read_bytes_per_s=40e9, int8_ops_per_s=2e12, bf16_ops_per_s=0.5e12)
    work = Work(
        weight_bytes=100_000_000,
        layer_ops=200_000_000,
        head_ops=50_000_000,
        layer_limit_s=200e6 / 2e12,
        head_limit_s=50e6 / 2e12,
    )
    report = OfflineReport(
        shape=OfflineShape(prompt_tokens=512, output_tokens=64, batch=8),
        prefill_tokens_per_s=Spread(4096.0, 4000.0, 4200.0),
        decode_tokens_per_s=Spread(1600.0, 1500.0, 1700.0),
        step_ms=Spread(5.0, 4.5, 5.5),
        rounds=3,
    )
    used = compare(work, limits, report)
    assert used.decode_gb_per_s == 20.0
    assert used.decode_read_share == 0.5
    assert abs(used.decode_compute_share - 8 * 125e-6 / 5e-3) < 1e-12
    assert abs(used.decode_top_per_s - 0.4) < 1e-12
    assert abs(used.prefill_compute_share - 8 * (512 * 100e-6 + 25e-6)) < 1e-12


def test_a_process_knows_its_age_and_its_largest_size() -> None:
    age = seconds_since_start()
    assert age is not None
    assert 0 < age < 86_400
    assert peak_memory_bytes() > 10 << 20
