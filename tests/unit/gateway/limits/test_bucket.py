"""The bucket of a limit, against a model that refills it tick by tick."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from headrace.gateway.limits import bucket

S = 10**9
MINUTE = 60 * S


def test_a_full_bucket_gives_its_content_at_once_and_then_evenly() -> None:
    full_ns = 0
    for _ in range(3):
        assert bucket.wait_ns(full_ns, 0, 1, 3, MINUTE) == 0
        full_ns = bucket.take(full_ns, 0, 1, 3, MINUTE)
    assert bucket.wait_ns(full_ns, 0, 1, 3, MINUTE) == 20 * S
    assert bucket.remaining(full_ns, 0, 3, MINUTE) == 0
    assert bucket.remaining(full_ns, 40 * S, 3, MINUTE) == 2
    assert bucket.wait_ns(full_ns, 20 * S, 1, 3, MINUTE) == 0


def test_more_than_the_bucket_holds_waits_for_a_full_one() -> None:
    full_ns = bucket.take(0, 0, 1, 10, MINUTE)
    assert bucket.wait_ns(full_ns, 0, 1000, 10, MINUTE) == 6 * S
    assert bucket.wait_ns(full_ns, 6 * S, 1000, 10, MINUTE) == 0


def test_what_is_given_back_can_be_taken_again() -> None:
    full_ns = bucket.take(0, 0, 10, 10, MINUTE)
    assert bucket.remaining(full_ns, 0, 10, MINUTE) == 0
    full_ns = bucket.take(full_ns, 0, -7, 10, MINUTE)
    assert bucket.remaining(full_ns, 0, 10, MINUTE) == 7


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 30 * S), st.integers(1, 20)), max_size=40),
)
def test_never_more_goes_than_a_refilled_bucket_holds(amount: int, arrivals: list[tuple[int, int]]) -> None:
    full_ns, now_ns = 0, 0
    level = Fraction(amount)
    for gap_ns, num in arrivals:
        now_ns += gap_ns
        level = min(Fraction(amount), level + Fraction(gap_ns * amount, MINUTE))
        num = min(num, amount)
        if bucket.wait_ns(full_ns, now_ns, num, amount, MINUTE) == 0:
            full_ns = bucket.take(full_ns, now_ns, num, amount, MINUTE)
            level -= num
            assert level >= 0
        else:
            # Each amount taken is rounded up to a whole nanosecond, so a refusal may be early by that much.
            assert level < num + Fraction(len(arrivals) * amount, MINUTE)
