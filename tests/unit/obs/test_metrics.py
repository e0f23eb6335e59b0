"""Metrics under vLLM's names, logs on one line, the start-up timeline."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.core.delta import FinishReason
from headrace.core.errors import Overloaded
from headrace.core.request import RequestId
from headrace.core.stats import EngineSnapshot, RequestStats, StepStats
from headrace.obs import Metrics, Timeline, configure_logging
from headrace.obs.histogram import Histogram
from headrace.testing import VirtualClock

SNAPSHOT = EngineSnapshot(
    num_running=2, num_waiting=3, num_blocks=10, num_free_blocks=4, num_steps=5, num_preemptions=1, prompt_tokens=70,
    generated_tokens=9, recomputed_tokens=6, last_step_s=1.0, is_dead=False,
)  # fmt: skip


def stats(**changes: object) -> RequestStats:
    values = {
        "request_id": RequestId("r"), "model": "m", "prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 2,
        "finishes": (FinishReason.STOP, FinishReason.LENGTH), "arrival_s": 1.0, "first_scheduled_s": 1.4,
        "first_token_s": 1.5, "finished_s": 3.0, "num_preemptions": 0,
    }  # fmt: skip
    return RequestStats(**{**values, **changes})  # type: ignore[arg-type]


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Parse what a scrape would see; labels without the model's name."""
    text = metrics.render()[0].decode()
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "model_name"))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_gauges_and_counters_carry_vllm_names() -> None:
    metrics = Metrics()
    metrics.add(metrics.observer("m"), lambda: SNAPSHOT)
    seen = samples(metrics)
    assert seen["vllm:num_requests_running", ()] == 2
    assert seen["vllm:num_requests_waiting", ()] == 3
    assert seen["vllm:kv_cache_usage_perc", ()] == pytest.approx(0.6)
    assert seen["vllm:prompt_tokens_total", ()] == 70
    assert seen["vllm:generation_tokens_total", ()] == 9
    assert seen["vllm:num_preemptions_total", ()] == 1
    assert seen["headrace_engine_up", ()] == 1


def test_an_ended_request_is_counted_once_everywhere() -> None:
    metrics = Metrics()
    observer = metrics.observer("m")
    metrics.add(observer, lambda: SNAPSHOT)
    observer.on_first_token(0.5)
    observer.on_next_token(0.02)
    observer.on_next_token(0.002)
    observer.on_finished(stats())
    observer.on_refused(Overloaded("full", retry_after_s=1))
    seen = samples(metrics)
    assert seen["vllm:time_to_first_token_seconds_sum", ()] == 0.5
    assert seen["vllm:inter_token_latency_seconds_count", ()] == 2
    assert seen["vllm:inter_token_latency_seconds_bucket", (("le", "0.0025"),)] == 1
    assert seen["vllm:e2e_request_latency_seconds_sum", ()] == 2.0
    assert seen["vllm:request_queue_time_seconds_sum", ()] == pytest.approx(0.4)
    assert seen["vllm:request_success_total", (("finished_reason", "stop"),)] == 1
    assert seen["vllm:request_success_total", (("finished_reason", "length"),)] == 1
    assert seen["vllm:request_success_total", (("finished_reason", "abort"),)] == 0
    assert seen["headrace_refused_requests_total", (("code", "overloaded"),)] == 1


def test_a_request_that_never_ran_has_no_queue_time() -> None:
    observer = Metrics().observer("m")
    observer.on_finished(stats(first_scheduled_s=None, first_token_s=None))
    assert observer.queue.buckets()[-1][1] == 0


def test_steps_add_up() -> None:
    observer = Metrics().observer("m")
    for tokens in (1, 8, 9):
        observer.on_step(StepStats(num_rows=1, num_tokens=tokens, num_sampled=1, device_s=0.25, loop_s=0.5))
    assert observer.step_tokens.buckets()[:3] == [("1", 1), ("8", 2), ("16", 3)]
    assert (observer.device_s, observer.loop_s) == (0.75, 1.5)


def test_edges_are_inclusive_and_the_last_bucket_holds_all() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 99.0):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 1), ("2.0", 3), ("+Inf", 4)]
    assert histogram.sum == 103.5


def test_several_models_share_a_family() -> None:
    metrics = Metrics()
    for name in ("a", "b"):
        metrics.add(metrics.observer(name), lambda: SNAPSHOT)
    text = metrics.render()[0].decode()
    assert text.count("# TYPE vllm:num_requests_running gauge") == 1
    assert 'vllm:num_requests_running{model_name="b"} 2.0' in text


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("headrace").setLevel(logging.NOTSET)


@pytest.mark.usefixtures("restored_logging")
def test_an_event_is_one_line() -> None:
    stream = io.StringIO()
    configure_logging("info", stream)
    logging.getLogger("headrace.api.access").info("a\nforged line")
    logging.getLogger("headrace.api.access").debug("hidden")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("INFO    api.access  a\\nforged line")


def test_timeline_adds_phases_and_tells_the_whole(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    timeline = Timeline(clock)
    for name, seconds in (("load", 1.0), ("warm", 0.5), ("load", 0.25)):
        with timeline.phase(name):
            clock.advance(seconds)
    with caplog.at_level("INFO"):
        timeline.finish()
    assert timeline.phases_s == {"load": 1.25, "warm": 0.5, "ready": 1.75}
    assert "load 1250 ms, warm 500 ms, ready 1750 ms" in caplog.text


# What the Grafana dashboard in vLLM's repository asks for, and what its autoscalers and load generators read.
ASKED_OF_VLLM = """
    vllm:e2e_request_latency_seconds_bucket vllm:e2e_request_latency_seconds_sum vllm:e2e_request_latency_seconds_count
    vllm:prompt_tokens_total vllm:generation_tokens_total vllm:inter_token_latency_seconds_bucket
    vllm:num_requests_running vllm:num_requests_waiting vllm:time_to_first_token_seconds_bucket
    vllm:kv_cache_usage_perc vllm:request_prompt_tokens_bucket vllm:request_generation_tokens_bucket
    vllm:request_success_total vllm:request_queue_time_seconds_sum vllm:request_prefill_time_seconds_sum
    vllm:request_decode_time_seconds_sum vllm:request_max_num_generation_tokens_sum vllm:num_preemptions_total
    vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total vllm:request_inference_time_seconds_sum
    vllm:request_time_per_output_token_seconds_bucket vllm:iteration_tokens_total_bucket
    vllm:request_params_max_tokens_bucket vllm:request_params_n_bucket
"""


def test_dashboards_that_were_made_for_vllm_find_what_they_ask_for() -> None:
    metrics = Metrics()
    observer = metrics.observer("m")
    metrics.add(observer, lambda: SNAPSHOT)
    observer.on_finished(stats(longest_tokens=2, max_tokens=16))
    seen = samples(metrics)
    assert {name for name in ASKED_OF_VLLM.split() if name not in {name for name, _ in seen}} == set()
    assert seen["vllm:request_prefill_time_seconds_sum", ()] == pytest.approx(0.1)
    assert seen["vllm:request_decode_time_seconds_sum", ()] == pytest.approx(1.5)
    assert seen["vllm:request_inference_time_seconds_sum", ()] == pytest.approx(1.6)
    assert seen["vllm:request_time_per_output_token_seconds_sum", ()] == pytest.approx(1.5)  # of the longer choice
    assert seen["vllm:request_max_num_generation_tokens_sum", ()] == 2
    assert seen["vllm:request_params_max_tokens_bucket", (("le", "20"),)] == 1
    assert seen["vllm:request_params_n_bucket", (("le", "1"),)] == 0
