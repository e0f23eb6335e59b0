"""What makes slow requests slow: the part that grew, of those that ended by themselves."""

from __future__ import annotations

import pytest

from headrace.econ.percentiles import quantile
from headrace.econ.stack.latency import drivers
from headrace.econ.stack.rows import PARTS
from tests.stack_ledgers import S, remote, request


def usual(number: int, **changes: int) -> object:
    return request(
        **{"queue_ns": S + number, "prefill_ns": S, "decode_ns": 2 * S, "ttft_ns": 2 * S + number, **changes}
    )


def test_the_part_that_grew_most_is_the_driver() -> None:
    rows = [usual(n) for n in range(198)] + [usual(0, queue_ns=9 * S, decode_ns=3 * S, ttft_ns=10 * S)] * 2
    whole, first = drivers(rows)  # type: ignore[arg-type]
    assert (whole.driver, whole.requests, whole.slowest.requests) == ("queue", 200, 2)
    assert whole.driver_share == pytest.approx(8 / 9, rel=1e-6)
    assert whole.slowest.parts_ns == (0, 9 * S, S, 3 * S, 0, 0)
    assert whole.p99_ns == pytest.approx(quantile(sorted([4 * S + n for n in range(198)] + [13 * S] * 2), 0.99))
    assert (first.driver, first.driver_share) == ("queue", 1.0)
    assert first.slowest.total_ns == 10 * S
    assert first.slowest.parts_ns[PARTS.index("decode")] == 0
    assert whole.is_enough


def test_answers_that_were_given_up_explain_nothing() -> None:
    rows = [request(outcome="abort", decode_ns=99 * S), request(outcome="expired", queue_ns=99 * S)]
    assert drivers(rows) == []
    assert drivers([request(admission_ns=None)]) == []


def test_a_remote_answers_time_is_the_upstreams_or_its_readers() -> None:
    rows = [remote(upstream_ns=S, reading_ns=0, ttft_ns=S // 2)] * 99
    rows.append(remote(upstream_ns=S, reading_ns=5 * S, ttft_ns=S // 2, tenant="slow"))
    whole, first = drivers(rows)
    assert (whole.driver, whole.driver_share, whole.slowest.tenant) == ("reading", 1.0, "slow")
    assert first.driver_share == 0.0


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2.5), (1.0, 4), (0.99, 3.97)])
def test_quantiles_are_interpolated_as_numpy_does(share: float, value: float) -> None:
    assert quantile([1, 2, 3, 4], share) == pytest.approx(value)
    assert quantile([], share) == 0.0
