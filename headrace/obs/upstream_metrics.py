"""Remote upstreams as metric families, read from their state when somebody scrapes.

Owns nothing. Names: `headrace_upstream_*`, labelled by the upstream's name in the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from headrace.core.upstream_status import BreakerState, UpstreamStatus

_LABELS = ("upstream",)


def upstream_families(statuses: Sequence[UpstreamStatus]) -> Iterator[Metric]:
    """Yield every family; without samples where there are no upstreams."""
    breaker = GaugeMetricFamily(
        "headrace_upstream_breaker", "1 for the state the upstream's breaker is in", labels=(*_LABELS, "state")
    )
    attempts = CounterMetricFamily(
        "headrace_upstream_attempts", "Ended attempts, by how they ended", labels=(*_LABELS, "outcome")
    )
    for status in statuses:
        for state in BreakerState:
            breaker.add_metric((status.name, state.value), float(status.breaker is state))
        for outcome, count in status.outcomes.items():
            attempts.add_metric((status.name, outcome), count)
    yield breaker
    yield attempts
    yield from _counters(statuses)
    yield from _gauges(statuses)


def _counters(statuses: Sequence[UpstreamStatus]) -> Iterator[Metric]:
    table: tuple[tuple[str, str, Callable[[UpstreamStatus], float]], ...] = (
        ("headrace_upstream_retries", "Failed attempts that another one followed", lambda s: s.retries),
        ("headrace_upstream_hedges", "Attempts made because another upstream was slow", lambda s: s.hedges),
        ("headrace_upstream_resumed", "Answers that another replica went on with", lambda s: s.resumed),
        ("headrace_upstream_reported_usd", "What it says that its answers cost", lambda s: s.reported_nano / 1e9),
        ("headrace_upstream_uncounted_attempts", "Attempts whose usage it never told", lambda s: s.uncounted),
        (
            "headrace_upstream_uncounted_input_tokens",
            "Prompt tokens of those, estimated",
            lambda s: s.uncounted_input_tokens,
        ),
        (
            "headrace_upstream_uncounted_output_tokens",
            "Answer tokens that came of those, estimated",
            lambda s: s.uncounted_output_tokens,
        ),
        (
            "headrace_upstream_uncounted_usd",
            "Those tokens at the price that callers pay, where there is one; nobody knows whether they were billed",
            lambda s: s.uncounted_nano / 1e9,
        ),
    )
    for name, text, read in table:
        family = CounterMetricFamily(name, text, labels=_LABELS)
        for status in statuses:
            family.add_metric((status.name,), read(status))
        yield family


def _gauges(statuses: Sequence[UpstreamStatus]) -> Iterator[Metric]:
    table: tuple[tuple[str, str, Callable[[UpstreamStatus], float]], ...] = (
        ("headrace_upstream_requests_running", "Attempts that are open", lambda s: s.in_flight),
        ("headrace_upstream_ttft_seconds", "Smoothed time to first token; 0 before one", lambda s: s.ttft_s or 0.0),
        ("headrace_upstream_dead_keys", "Keys that the upstream rejects", lambda s: s.dead_keys),
        ("headrace_upstream_throttled_keys", "Keys that have to wait", lambda s: s.throttled_keys),
    )
    for name, text, read in table:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        for status in statuses:
            family.add_metric((status.name,), read(status))
        yield family
