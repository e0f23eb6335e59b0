"""Traces: what is sent, what is not, and that a collector which is gone holds nobody up."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from headrace.core.clock import MonotonicClock
from headrace.core.errors import ConfigError, Overloaded
from headrace.core.settings import load
from headrace.core.tracing import stage
from headrace.obs.otel import OtelTracer
from headrace.testing import VirtualClock
from tests.otlp_receiver import OtlpReceiver, running_receiver


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with running_receiver() as found:
        yield found


def test_times_of_the_clock_become_times_of_day(receiver: OtlpReceiver) -> None:
    clock = VirtualClock()
    clock.advance(1000.0)
    tracer = OtelTracer(receiver.url, 1.0, clock, "0")
    began_ns = time.time_ns()
    span = tracer.begin("POST /x", "chat", {})
    begun_ns = time.time_ns()
    span.begin("queue", 1000.25).end(1002.5)
    clock.advance(3.0)
    span.end()
    tracer.close()
    queue, whole = receiver.one("queue"), receiver.one("POST /x")
    assert (queue.end_ns - queue.start_ns, whole.end_ns - queue.end_ns) == (2_250_000_000, 500_000_000)
    assert began_ns <= queue.start_ns - 250_000_000 <= begun_ns


def test_a_stage_that_fails_carries_the_errors_code_and_not_its_words(receiver: OtlpReceiver) -> None:
    tracer = OtelTracer(receiver.url, 1.0, MonotonicClock(), "0")
    span = tracer.begin("POST /x", "chat", {})
    with pytest.raises(Overloaded), stage(span, "admission"):
        raise Overloaded("the words of a caller", retry_after_s=1.0)
    span.end()
    tracer.close()
    failed = receiver.one("admission")
    assert failed.is_error
    assert failed.attributes["error.type"] == "overloaded"
    assert b"words" not in receiver.raw


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_the_sample_ratio_decides_where_the_caller_has_not(receiver: OtlpReceiver, ratio: float, share: float) -> None:
    tracer = OtelTracer(receiver.url, ratio, MonotonicClock(), "0")
    kept = 0
    for _ in range(400):
        span = tracer.begin("r", "chat", {})
        stage_of_it = span.begin("queue")
        kept += int(span.headers()["traceparent"].rpartition("-")[2], 16) & 1
        stage_of_it.end()
        span.end()
    tracer.close()
    assert kept / 400 == pytest.approx(share, abs=0.1)
    assert len(receiver.spans) == 2 * kept


def test_a_caller_that_has_decided_is_followed_and_its_state_passed_on(receiver: OtlpReceiver) -> None:
    tracer = OtelTracer(receiver.url, 0.0, MonotonicClock(), "0")
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    span = tracer.begin("r", "chat", {"traceparent": parent, "tracestate": "vendor=1"})
    assert span.headers()["tracestate"] == "vendor=1"
    assert span.headers()["traceparent"].split("-")[1] == span.trace_id == "0af7651916cd43dd8448eb211c80319c"
    broken = tracer.begin("r", "chat", {"traceparent": "00-nonsense"})
    assert broken.trace_id != "0" * 32
    span.end()
    tracer.close()
    assert receiver.one("r").parent_id == "b7ad6b7169203331"


def test_a_collector_that_is_gone_costs_spans_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    tracer = OtelTracer("http://127.0.0.1:9", 1.0, MonotonicClock(), "0", send_s=0.2)
    for _ in range(5000):  # more than are kept
        tracer.begin("r", "chat", {}).end()
    began = time.monotonic()
    with caplog.at_level(logging.CRITICAL):
        tracer.close()
    assert time.monotonic() - began < 30


def test_nothing_of_opentelemetry_is_imported_where_telemetry_is_off() -> None:
    code = "import sys, headrace.app.serving; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.otlp_endpoint is 'collector:4318'; write a URL such as"):
        load(overrides={"telemetry.otlp_endpoint": "collector:4318"}, environ={})
