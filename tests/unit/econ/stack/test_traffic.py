"""The profile of the traffic: lengths, hours, repeats and common beginnings, told by digests alone."""

from __future__ import annotations

from headrace.econ.stack.rows import PREFIX_DIGITS
from headrace.econ.stack.traffic import traffic
from tests.stack_ledgers import HOUR, remote, request

COMMON = "a" * PREFIX_DIGITS + "b" * PREFIX_DIGITS


def test_lengths_hours_and_ends_are_counted() -> None:
    rows = [
        request(input_uncached=3, cache_read=5, output_text=0, settled_ns=HOUR),
        request(input_uncached=64, output_text=1, settled_ns=25 * HOUR + 1, outcome="length"),
        request(input_uncached=65, output_text=3, output_reasoning=2, is_stream=0),
    ]
    found = traffic(rows)
    assert found.input.counts == ((8, 1), (16, 0), (32, 0), (64, 1), (128, 1))
    assert found.output.counts == ((0, 1), (1, 1), (2, 0), (4, 0), (8, 1))
    assert (found.input.longest, found.output.longest, found.input.p50) == (65, 5, 64)
    assert (found.by_hour[0], found.by_hour[1], sum(found.by_hour)) == (1, 2, 3)
    assert found.outcomes == (("stop", 2), ("length", 1))
    assert (found.streamed, found.input_tokens, found.cached_tokens) == (2, 137, 5)
    assert not found.has_digests


def test_a_request_that_no_model_saw_has_no_length() -> None:
    found = traffic(
        [request(input_uncached=64, output_text=8), request(input_uncached=0, output_text=0, outcome="error")]
    )
    assert (found.requests, found.input.p50, found.output.p50) == (2, 64, 8)


def test_a_repeat_is_the_same_tenants_and_its_cost_is_where_it_was_paid() -> None:
    same = {"request_digest": "d1", "is_repeatable": 1}
    rows = [
        request(**same, machine_nano=5),
        request(**same, machine_nano=7),
        request(**same, tenant="b", machine_nano=11),
        request(request_digest="d2"),
        request(request_digest="d2", machine_nano=13),
        remote(request_digest="d3", is_repeatable=1, cost_nano=17),
        remote(request_digest="d3", is_repeatable=1, cost_nano=19),
        request(),
    ]
    found = traffic(rows).repeats
    assert (found.requests, found.exact_here, found.exact_remote, found.of_requests) == (3, 1, 1, 7)
    assert (found.exact_machine_nano, found.exact_remote_nano) == (7, 19)


def test_a_common_beginning_is_judged_by_the_tokens_that_were_computed_again() -> None:
    rows = [
        request(prefix_digests=COMMON, cache_read=0),
        request(prefix_digests=COMMON, cache_read=0),
        request(prefix_digests=COMMON, cache_read=96),
        request(prefix_digests=COMMON[:PREFIX_DIGITS] + "c" * PREFIX_DIGITS, cache_read=64),
        request(prefix_digests="", tenant="b"),
    ]
    (prefix,) = traffic(rows).prefixes
    assert (prefix.length, prefix.requests, prefix.of_requests, prefix.tenant) == (128, 3, 4, "a")
    assert prefix.missed_tokens == 128 + 32


def test_tenants_are_told_by_their_tokens() -> None:
    rows = [request(tenant="small"), request(tenant="big", input_uncached=10_000), request(tenant="small", engine_ns=5)]
    assert [(each.tenant, each.requests, each.tokens, each.engine_ns) for each in traffic(rows).tenants] == [
        ("big", 1, 10_010, 0),
        ("small", 2, 220, 5),
    ]
