"""Improvements: each only on its evidence, with the saving that its formula gives; nothing on none."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.econ import EngineSpan
from headrace.econ.stack import ReferencePrice, RequestRow, StackAudit, StepFit, audit
from headrace.econ.stack.rows import PREFIX_DIGITS
from headrace.econ.stack.savings import Improvement, usd
from tests.stack_ledgers import HOUR, RATE, S, build, ledger, remote, request, span

DAY = 24 * HOUR


def day(*requests: RequestRow, busy_ns: int = 0, **changes: Any) -> StackAudit:
    """An audit of a day with one engine, busy in its second hour."""
    spans = [span(from_ns=0, total_ns=HOUR, loading_ns=S)]
    spans += [span(from_ns=HOUR, total_ns=HOUR, requests_ns=busy_ns - changes.get("recomputed_ns", 0), **changes)]
    spans += [span(from_ns=HOUR * number, total_ns=HOUR) for number in range(2, 24)]
    return audit(ledger(list(requests), spans), [ReferencePrice("there", 0, 0, 10**6)])


def find(found: StackAudit, words: str) -> Improvement:
    (one,) = [each for each in found.improvements if words in each.title]
    return one


def titles(found: StackAudit) -> str:
    return "; ".join(each.title for each in found.improvements)


def test_long_idle_stretches_are_worth_their_time_less_the_loading() -> None:
    found = day(request(engine_ns=HOUR // 2, machine_nano=HOUR // 2), busy_ns=HOUR // 2)
    one = find(found, "to zero when idle")
    # The first hour loads and the second works; of the 22 after them a start's loading goes off.
    assert one.nano_per_day == 22 * HOUR - S
    assert one.is_cash
    assert "1 s" in one.wrong_if


def test_a_machine_that_is_never_half_busy_may_be_half_the_size() -> None:
    calm = day(request(engine_ns=HOUR // 10, machine_nano=HOUR // 10), busy_ns=HOUR // 10)
    assert find(calm, "half the size").nano_per_day == pytest.approx(DAY / 2, abs=2)
    busy = day(request(engine_ns=HOUR // 2, machine_nano=HOUR // 2), busy_ns=HOUR // 2)
    assert "half the size" not in titles(busy)


def test_a_short_record_does_not_speak_of_hours_and_says_so() -> None:
    found = audit(ledger([request(engine_ns=50, machine_nano=50)]), [])
    assert found.improvements == []
    lacks = {each.title: each.lacks for each in found.not_judged}
    assert {"scale to zero when idle", "a smaller machine", "a remote upstream instead of a machine"} <= set(lacks)
    assert any("assume that a day goes on like that" in caveat for caveat in found.caveats)


def test_a_price_that_beats_the_machine_at_this_load_is_told_and_one_that_does_not_is_not() -> None:
    tokens = 10**9
    row = request(engine_ns=HOUR, machine_nano=HOUR, output_text=tokens)
    spans = [span(total_ns=DAY, requests_ns=HOUR)]
    cheap, dear = (
        ReferencePrice(name, 0, 0, DAY // tokens * price) for name, price in (("x", 500_000), ("y", 950_000))
    )
    found = audit(ledger([row], spans), [cheap, dear])
    one = find(found, "elsewhere")
    assert one.nano_per_day == pytest.approx(DAY / 2, rel=1e-6)
    assert "8.3%" in one.evidence
    assert "elsewhere" not in titles(audit(ledger([row], spans), [dear]))


def test_an_idle_engine_may_answer_what_an_upstream_is_paid_for_if_it_has_the_time() -> None:
    own = request(engine_ns=S, machine_nano=S, prompt_ns=S // 2, input_uncached=1000, output_text=100)
    paid = {"cost_nano": 77, "cached_nano": 0, "output_nano": 40, "settled_ns": DAY}
    found = day(own, remote(**paid, input_uncached=1000, output_text=100), busy_ns=S)
    assert find(found, "answer far with m").nano_per_day == 77
    huge = remote(**paid, input_uncached=10**9, output_text=100)
    assert "answer far" not in titles(day(own, huge, busy_ns=S))


def test_other_weights_are_judged_by_measured_step_times_only() -> None:
    now = StepFit(shared=0.010, per_row=0.001, per_read=0.0, per_token=0.0001, per_pair=0.0, source="now")
    half = now._replace(shared=0.005, per_row=0.0005, source="int8")
    row = request(engine_ns=HOUR, machine_nano=HOUR, input_uncached=10_000, output_text=1000)
    spans = [span(total_ns=DAY, requests_ns=3 * S)]
    found = audit(ledger([row], spans), [], (now, half))
    # 3 s of work: 1 s prompt, 1 s rows, so 1 s is shared: 100 steps. The other way: 1 + 0.5 + 0.5.
    one = find(found, "int8")
    assert one.nano_per_day == pytest.approx(HOUR / 3, rel=1e-3)
    assert not one.is_cash
    assert "fewer bits" in " ".join(each.title for each in audit(ledger([row], spans), []).not_judged)
    alien = audit(ledger([row], [span(total_ns=DAY, requests_ns=S)]), [], (now, half))
    assert alien.improvements == [] or "int8" not in titles(alien)
    assert any("not measured on this engine" in each.lacks for each in alien.not_judged)


def test_recomputing_speaks_for_smaller_keys_and_values_unless_they_are_small_already() -> None:
    row = request(engine_ns=9 * S, machine_nano=9 * S)
    found = day(row, busy_ns=10 * S, recomputed_ns=S)
    assert find(found, "int8 keys").nano_per_day == S
    spans = [span(total_ns=DAY, requests_ns=9 * S, recomputed_ns=S)]
    small = ledger([row], spans)._replace(builds={"e1": build(kv_dtype="int8")})
    assert "int8 keys" not in titles(audit(small, []))


def test_a_beginning_that_is_computed_again_is_worth_its_tokens() -> None:
    asked = {"prefix_digests": "a" * PREFIX_DIGITS, "request_digest": "x", "settled_ns": DAY}
    rows = [request(**asked, engine_ns=10, machine_nano=1000, prompt_ns=10, input_uncached=100) for _ in range(3)]
    one = find(day(*rows, busy_ns=30), "first 64 tokens")
    assert one.nano_per_day == 2 * 64 * 10  # ten nano-dollars a token
    cached = [row._replace(cache_read=64) for row in rows]
    assert "first 64" not in titles(day(*cached, busy_ns=30))


def test_greedy_repeats_are_worth_what_they_cost() -> None:
    here = [request(request_digest="h", is_repeatable=1, engine_ns=5, machine_nano=50) for _ in range(3)]
    far = [remote(request_digest="f", is_repeatable=1, cost_nano=30, settled_ns=DAY) for _ in range(2)]
    found = day(*here, *far, busy_ns=15)
    assert find(found, "remote upstreams from a cache").nano_per_day == 30
    assert find(found, "engines here from a cache").nano_per_day == 100
    drawn = [row._replace(is_repeatable=0) for row in (*here, *far)]
    assert "from a cache" not in titles(day(*drawn, busy_ns=15))


def test_answers_that_nobody_waits_for_are_capped_where_others_end() -> None:
    done = [request(output_text=20, engine_ns=2, machine_nano=2000, settled_ns=DAY) for _ in range(20)]
    left = request(output_text=120, outcome="abort", engine_ns=12, machine_nano=12000)
    found = day(*done, left, busy_ns=52)
    one = find(found, "cap a's answers")
    assert "20 tokens" in one.title
    assert one.nano_per_day == 100 * 100  # a hundred tokens at a hundred nano-dollars
    assert "cap a's" not in titles(day(*done, left._replace(output_text=15), busy_ns=52))


def test_a_tenant_in_no_hurry_may_step_back_where_the_queue_is_long() -> None:
    quick = [request(ttft_ns=S, prefill_ns=S, tenant="chat", settled_ns=DAY)] * 198
    slow = [request(ttft_ns=9 * S, queue_ns=8 * S, prefill_ns=S, tenant="chat")] * 2
    batch = [request(ttft_ns=S, prefill_ns=S, tenant="batch", is_stream=0, input_uncached=9000)] * 10
    one = find(day(*quick, *slow, *batch), "background")
    assert "batch" in one.title
    assert one.nano_per_day == 0
    hurried = [row._replace(is_stream=1) for row in batch]
    assert "background" not in titles(day(*quick, *slow, *hurried))


def test_money_comes_before_free_time_and_each_by_saving_for_effort() -> None:
    here = [request(request_digest="h", is_repeatable=1, engine_ns=HOUR, machine_nano=HOUR) for _ in range(3)]
    far = [remote(request_digest="f", is_repeatable=1, cost_nano=30, settled_ns=DAY) for _ in range(2)]
    found = day(*here, *far, busy_ns=HOUR // 2)
    kinds = [each.is_cash for each in found.improvements]
    assert kinds == sorted(kinds, reverse=True)
    for is_cash in (True, False):
        ranks = [each.nano_per_day / each.effort_h for each in found.improvements if each.is_cash is is_cash]
        assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize(
    ("nano", "text"), [(0, "$0.00"), (123 * S, "$123"), (S // 2, "$0.50"), (1234567, "$0.00123"), (767, "$0.000000767")]
)
def test_amounts_have_the_digits_that_say_something(nano: int, text: str) -> None:
    assert usd(nano) == text


def test_a_span_without_requests_at_all_is_no_crash() -> None:
    found = audit(ledger([], [EngineSpan(*span(nano_per_hour=RATE))]), [ReferencePrice("there", 1, 1, 1)])
    assert found.total_nano == 100
    assert found.traffic.requests == 0
