"""The bill: its parts are its whole, and each nano-dollar is where it belongs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.request import RequestId
from headrace.core.stats import EngineTime, RequestStats
from headrace.econ import MachineRate, cost_of_time
from headrace.econ.stack import audit
from headrace.econ.stack.bill import CostLine, per_mtok
from headrace.gateway.ledger.engine_account import EngineAccount
from tests.stack_ledgers import build, ledger, remote, request, span


def bill(*args: object, **kwargs: object) -> list[CostLine]:
    return audit(ledger(*args, **kwargs), []).lines  # type: ignore[arg-type]


def test_a_small_ledger_comes_to_what_it_comes_to_by_hand() -> None:
    """One engine for 1,000 ns at a nano-dollar each: 400 for requests, 100 loading, 50 abandoned, 450 idle."""
    requests = [
        request(engine_ns=300, machine_nano=300, prompt_ns=100, input_uncached=60, cache_read=40, output_text=20),
        request(engine_ns=100, machine_nano=100, prompt_ns=100, input_uncached=40, output_text=0, outcome="abort"),
        remote(
            cost_nano=90,
            cached_nano=10,
            output_nano=50,
            input_uncached=2,
            cache_write=2,
            cache_write_1h=1,
            cache_read=5,
            output_text=2,
        ),
        remote(cost_nano=None, model="free", input_uncached=5, output_text=2),
    ]
    spans = [span(total_ns=1000, requests_ns=400, loading_ns=100, abandoned_ns=50)]
    here, far, free = bill(requests, spans)
    assert (here.fresh_nano, here.cached_nano, here.output_nano, here.unsplit_nano) == (200, 0, 200, 0)
    assert (here.loading_nano, here.recomputed_nano, here.abandoned_nano, here.idle_nano) == (100, 0, 50, 450)
    assert (here.total_nano, here.fresh_tokens, here.cached_tokens, here.output_tokens) == (1000, 100, 40, 20)
    assert per_mtok(here.fresh_nano, here.fresh_tokens) == pytest.approx(0.002)
    assert per_mtok(here.total_nano, here.tokens) == pytest.approx(1000 / 160 / 1e3)
    assert (far.fresh_nano, far.cached_nano, far.output_nano, far.pool_nano) == (30, 10, 50, 0)
    assert (far.fresh_tokens, far.cached_tokens, far.output_tokens) == (5, 5, 2)
    assert (free.total_nano, free.unpriced) == (0, 1)


def test_a_remote_answer_cost_what_its_upstream_reported_divided_as_the_price_divides_it() -> None:
    told = remote(cost_nano=90, cached_nano=10, output_nano=50, reported_nano=181)
    undivided = remote(cost_nano=None, model="free", reported_nano=7)
    given_away = remote(cost_nano=0, cached_nano=0, output_nano=0, model="gift", reported_nano=5)
    lines = {line.configuration.model: line for line in bill([told, undivided, given_away])}
    far, free, gift = (lines[model] for model in ("far", "free", "gift"))
    assert (far.fresh_nano, far.cached_nano, far.output_nano) == (60, 20, 101)
    assert (free.unsplit_nano, free.total_nano, free.unpriced) == (7, 7, 0)
    assert (gift.unsplit_nano, gift.total_nano) == (5, 5)


def test_engines_that_were_built_alike_are_one_line_and_others_are_their_own() -> None:
    spans = [span(engine=name, total_ns=10) for name in ("e1", "e2", "e3")]
    found = ledger([request(engine=name, engine_ns=1, machine_nano=1) for name in ("e1", "e2", "e3")], spans)
    found.builds["e3"] = build(weights="int8", weight_bytes=1000)
    lines = audit(found, []).lines
    assert sorted((line.requests, line.configuration.weights, line.configuration.bits) for line in lines) == [
        (1, "int8", 8.0),
        (2, "auto", 16.0),
    ]


def test_a_tenant_bears_the_part_of_the_pool_that_it_used_of_the_engine() -> None:
    spans = [span(total_ns=1000, requests_ns=400)]
    (line,) = bill([request(engine_ns=100, machine_nano=100)], spans, {"e1": 300})
    assert (line.used_nano, line.idle_nano) == (100, 150)


def test_a_request_that_never_reached_an_engine_is_counted_and_costs_nothing() -> None:
    found = audit(ledger([request(engine=None, outcome="error", input_uncached=0, output_text=0)]), [])
    assert (found.unserved, [line.requests for line in found.lines]) == (1, [0])


def test_rows_from_before_count_in_the_bill_undivided() -> None:
    old = request(engine=None, engine_ns=70, machine_nano=70, admission_ns=None, ttft_ns=None)
    found = audit(ledger([old], [span(requests_ns=70)]), [])
    assert {(line.unsplit_nano, line.idle_nano) for line in found.lines} == {(70, 0), (0, 30)}
    assert found.total_nano == 100
    assert any("recorded without their course" in caveat for caveat in found.caveats)


@given(st.integers(0, 10**6), st.integers(1, 10**13))
def test_the_lines_are_the_machines_bill_to_the_nano_dollar(seed: int, nano_per_hour: int) -> None:
    """Whatever requests and pool there were: billed as a server bills them, and added up by the audit."""
    chance, clock = random.Random(seed), {"time": EngineTime(total_ns=0)}
    account = EngineAccount("m", MachineRate(nano_per_hour, "config"), lambda: clock["time"], lambda: 10**18)
    requests, spans = [], []
    for index in range(30):
        used, prompt = chance.randint(0, 10**9), chance.random()
        now = clock["time"]
        parts = {name: getattr(now, name) + chance.randint(0, 10**9) for name in ("recomputed_ns", "abandoned_ns")}
        parts["loading_ns"] = now.loading_ns + (chance.randint(0, 10**9) if index == 0 else 0)
        parts["idle_ns"] = now.idle_ns + chance.choice((0, chance.randint(0, 10**10)))
        parts["requests_ns"] = now.requests_ns + used
        # Some time is set aside for cached prefixes; of all that was so far, the request may pay a part.
        kept = now.cached_ns + chance.randint(0, 10**9)
        rent = chance.choice((0, chance.randint(0, kept)))
        parts["requests_ns"] += rent
        parts["cached_ns"] = kept - rent
        parts["rent_ns"] = now.rent_ns + rent
        used += rent
        clock["time"] = EngineTime(total_ns=sum(parts.values()) - parts["rent_ns"], **parts)
        account.on_finished(_stats(index, used, int((used - rent) * prompt), rent))
        charge = account.claim(RequestId(f"r{index}"))
        assert charge is not None
        row = {"engine_ns": charge.engine_ns, "machine_nano": charge.machine_nano, "prompt_ns": charge.prompt_ns}
        row |= {"rent_ns": charge.rent_ns, "rent_nano": charge.rent_nano}
        requests.append(request(engine=account.engine, tenant=chance.choice("abc"), **row))
        if chance.random() < 0.4:
            spans.append(account.span())
    spans.append(account.span())
    whole = audit(ledger(requests, spans), [])
    assert whole.total_nano == cost_of_time(clock["time"].total_ns, nano_per_hour)
    assert sum(line.total_nano for line in whole.lines) == whole.total_nano


def _stats(index: int, engine_ns: int, prompt_ns: int, rent_ns: int) -> RequestStats:
    return RequestStats(
        request_id=RequestId(f"r{index}"),
        model="m",
        prompt_tokens=1,
        completion_tokens=1,
        cached_tokens=0,
        finishes=(),
        arrival_s=0.0,
        first_scheduled_s=None,
        first_token_s=None,
        finished_s=0.0,
        num_preemptions=0,
        engine_ns=engine_ns,
        prompt_ns=prompt_ns,
        rent_ns=rent_ns,
    )
