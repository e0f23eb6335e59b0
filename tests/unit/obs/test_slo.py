"""Objectives become bucket edges, and goodput counts what met all of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.core.delta import FinishReason
from headrace.core.errors import ConfigError, EngineDead, InvalidRequest, Overloaded
from headrace.core.request import RequestId
from headrace.core.settings import load
from headrace.core.slo_settings import SloSettings
from headrace.core.stats import EngineSnapshot, EngineTime, RequestStats
from headrace.obs import Metrics, ModelMetrics

# No limit is an edge that vLLM has, none is a sum of powers of two.
SLO = SloSettings(ttft_ms=217, tpot_ms=33.3, e2e_ms=1234, by_model={"patient": "ttft=5000 e2e=-"})


def request(
    ttft_s: float | None, e2e_s: float, tokens: int = 11, finish: FinishReason = FinishReason.STOP
) -> RequestStats:
    return RequestStats(
        request_id=RequestId("r"), model="m", prompt_tokens=7, completion_tokens=tokens, cached_tokens=0,
        finishes=(finish,), arrival_s=0.0, first_scheduled_s=0.0, first_token_s=ttft_s, finished_s=e2e_s,
        num_preemptions=0,
    )  # fmt: skip


def end(observer: ModelMetrics, stats: RequestStats) -> None:
    """Tell what an engine tells about a request."""
    if stats.first_token_s is not None:
        observer.on_first_token(stats.first_token_s - stats.arrival_s)
    observer.on_finished(stats)


def scraped(metrics: Metrics) -> dict[tuple[str, str, str], float]:
    """(name, model, the other label) → value."""
    found = {}
    for family in text_string_to_metric_families(metrics.render()[0].decode()):
        for sample in family.samples:
            others = [value for key, value in sample.labels.items() if key != "model_name"]
            found[sample.name, sample.labels.get("model_name", ""), "".join(others)] = sample.value
    return found


def snapshot(time: EngineTime | None = None) -> EngineSnapshot:
    return EngineSnapshot(
        num_running=0, num_waiting=0, num_blocks=1, num_free_blocks=1, num_steps=0, num_preemptions=0, prompt_tokens=0,
        generated_tokens=0, recomputed_tokens=0, last_step_s=None, is_dead=False, time=time,
    )  # fmt: skip


def test_objectives_are_edges_so_that_histograms_and_counters_agree_exactly() -> None:
    metrics = Metrics(SLO)
    observer = metrics.observer("m")
    metrics.add(observer, snapshot)
    draw = random.Random(5)
    requests = []
    for _ in range(500):
        ttft_s = draw.choice((0.217, draw.uniform(0.1, 0.3)))
        requests.append(request(ttft_s, ttft_s + 10 * draw.choice((0.0333, draw.uniform(0.01, 0.1)))))
        end(observer, requests[-1])
    seen = scraped(metrics)
    for objective, histogram, edge in (
        ("ttft", "vllm:time_to_first_token_seconds", "0.217"),
        ("e2e", "vllm:e2e_request_latency_seconds", "1.234"),
        ("tpot", "vllm:request_time_per_output_token_seconds", "0.0333"),
    ):
        within = seen[f"{histogram}_bucket", "m", edge]
        assert 0 < within < 500
        assert seen["headrace_slo_misses_total", "m", objective] == 500 - within
    assert ("vllm:inter_token_latency_seconds_bucket", "m", "0.0333") in seen
    good = [r for r in requests if r.first_token_s is not None and r.first_token_s <= 0.217 and r.finished_s <= 1.234]
    good = [r for r in good if (r.finished_s - (r.first_token_s or 0)) / 10 <= 0.0333]
    assert seen["headrace_goodput_requests_total", "m", ""] == len(good) > 0
    assert seen["headrace_goodput_tokens_total", "m", ""] == 11 * len(good)
    assert seen["headrace_slo_requests_total", "m", ""] == 500


def test_failures_and_want_of_capacity_are_bad_and_a_callers_own_doing_is_not_counted() -> None:
    metrics = Metrics(SLO)
    observer = metrics.observer("m")
    for stats in (
        request(0.1, 0.2, finish=FinishReason.ERROR),
        request(None, 9.0, tokens=0, finish=FinishReason.EXPIRED),  # late for two objectives, and failed
        request(0.1, 0.2, finish=FinishReason.ABORT),  # gave up while all was well
        request(None, 0.2, tokens=0, finish=FinishReason.ABORT),
        request(None, 0.3, tokens=0, finish=FinishReason.ABORT),  # waited for longer than the objective
        request(0.1, 0.1, tokens=1),  # one token has no gap
    ):
        end(observer, stats)
    for error in (Overloaded("full", retry_after_s=1), EngineDead("gone"), InvalidRequest("wrong")):
        observer.on_refused(error)
    slo = observer.slo
    assert (slo.counted, slo.good, slo.good_tokens) == (6, 1, 1)
    assert slo.misses == {"ttft": 2, "tpot": 0, "e2e": 1, "failure": 4}


def test_a_model_may_have_objectives_of_its_own() -> None:
    assert SLO.of("patient").named() == (("ttft", 5.0), ("tpot", 0.0333))
    metrics = Metrics(SLO)
    metrics.add(metrics.observer("patient"), snapshot)
    seen = scraped(metrics)
    assert seen["headrace_slo_objective_seconds", "patient", "ttft"] == 5.0
    assert ("headrace_slo_misses_total", "patient", "e2e") not in seen


def test_without_objectives_goodput_is_what_did_not_fail() -> None:
    observer = Metrics().observer("m")
    end(observer, request(100.0, 200.0))
    end(observer, request(0.1, 0.2, finish=FinishReason.ERROR))
    assert (observer.slo.counted, observer.slo.good) == (2, 1)


@pytest.mark.parametrize("words", ["ttft=0", "ttft=fast", "first=3", "ttft", "e2e=nan", "e2e=inf"])
def test_objectives_that_cannot_be_read_are_refused_with_the_way_to_write_them(words: str, tmp_path: Path) -> None:
    config = tmp_path / "headrace.toml"
    config.write_text(f'[slo]\nby_model = {{ m = "{words}" }}\n')
    with pytest.raises(ConfigError, match=f"'m' says '{words}'; write ttft=500"):
        load(config, {})


def test_the_engines_time_is_shown_as_money_where_the_machine_has_a_price() -> None:
    time = EngineTime(total_ns=3600 * 10**9, requests_ns=1800 * 10**9, idle_ns=1800 * 10**9)
    metrics = Metrics()
    metrics.add(metrics.observer("m"), lambda: snapshot(time))
    assert ("headrace_engine_usd_total", "m", "idle") not in scraped(metrics)
    metrics.set_rate(2 * 10**9)
    seen = scraped(metrics)
    assert seen["headrace_engine_usd_total", "m", "idle"] == seen["headrace_engine_usd_total", "m", "requests"] == 1.0
    assert seen["headrace_engine_time_seconds_total", "m", "idle"] == 1800
    assert seen["headrace_machine_usd_per_hour", "", ""] == 2.0
