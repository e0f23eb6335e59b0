"""Rent is divided to the nanosecond over those who use what rested, and never exceeds what was set aside."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.econ import Owed, RentPolicy, RentTerms, StepCosts, share_rent

BLOCKS = st.lists(st.integers(0, 30), unique=True)


def test_a_block_of_the_pool_costs_its_share_of_what_memory_is_of_the_machine() -> None:
    assert RentTerms.of(RentPolicy.FULL, 0.25, 8).rent_ns(8 * 1_000) == 250
    assert RentTerms.of(RentPolicy.NONE, 0.25, 8).rent_ns(8 * 1_000) == 0


def test_those_who_begin_together_share_what_they_have_in_common() -> None:
    assert share_rent({1: 100, 2: 100, 3: 7}, [(10, [1, 2]), (11, [1, 2, 3])]) == [100, 107]


@given(st.dictionaries(st.integers(0, 30), st.integers(0, 10**12)), st.lists(BLOCKS, min_size=1, max_size=5))
def test_what_rested_is_paid_once_by_whoever_uses_it(dues: dict[int, int], uses: list[list[int]]) -> None:
    uses[0] = sorted(dues.keys() | set(uses[0]))  # dues are of blocks that somebody uses
    parts = share_rent(dues, list(enumerate(uses)))
    assert sum(parts) == sum(dues.values())
    for part, blocks in zip(parts, uses, strict=True):
        assert part <= sum(dues.get(block, 0) for block in blocks)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 9)), min_size=1), st.floats(0, 1))
def test_payments_never_exceed_what_was_set_aside(spans: list[tuple[int, int]], share: float) -> None:
    terms = RentTerms.of(RentPolicy.FULL, share, 9)
    set_aside = terms.rent_ns(sum(span_ns * num_cached for span_ns, num_cached in spans))
    paid = sum(terms.due_ns(Owed(0, span_ns * num_cached, 1), StepCosts()) for span_ns, num_cached in spans)
    assert paid <= set_aside <= sum(span_ns for span_ns, _ in spans)
