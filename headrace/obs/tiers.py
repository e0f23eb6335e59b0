"""Metrics of the places for KV blocks below the pool: one line per engine and place.

Owns nothing: reads the counts that engines tell when somebody scrapes. Called by `obs.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from headrace.core.stats import EngineSnapshot, TierStats

_LABELS = ("model_name", "tier")
_Read = Callable[[TierStats], float]

_GAUGES: tuple[tuple[str, str, _Read], ...] = (
    (
        "headrace_kv_tier_up",
        "1 while the tier works; 0 while it hangs, is full or is left alone after a failure",
        lambda t: t.is_up,
    ),
    (
        "headrace_kv_tier_silent_seconds",
        "How long a call to the tier has lasted that lasts too long; 0: there is none",
        lambda t: t.silent_s,
    ),
    ("headrace_kv_tier_bytes", "Bytes that the tier keeps, where this process knows", lambda t: t.stored_bytes),
)
_COUNTERS: tuple[tuple[str, str, _Read], ...] = (
    ("headrace_kv_tier_hits", "Blocks loaded from the tier", lambda t: t.num_hits),
    ("headrace_kv_tier_misses", "Blocks that the tier was asked for and did not have", lambda t: t.num_misses),
    ("headrace_kv_tier_skipped", "Blocks computed though the tier had them: faster", lambda t: t.num_skipped),
    ("headrace_kv_tier_stored", "Blocks stored in the tier", lambda t: t.num_stored),
    ("headrace_kv_tier_dropped", "Blocks that the tier had no room or time for", lambda t: t.num_dropped),
    ("headrace_kv_tier_corrupt", "Blocks that came back damaged", lambda t: t.num_corrupt),
    ("headrace_kv_tier_errors", "Calls to the tier that failed", lambda t: t.num_errors),
    ("headrace_kv_tier_late", "Requests computed because the tier had not answered in time", lambda t: t.num_late),
    ("headrace_kv_tier_read_bytes", "Bytes read from the tier", lambda t: t.read_bytes),
    ("headrace_kv_tier_written_bytes", "Bytes written to the tier", lambda t: t.written_bytes),
    ("headrace_kv_tier_load_seconds", "Time spent reading from the tier", lambda t: t.load_s),
    ("headrace_kv_tier_store_seconds", "Time spent writing to the tier", lambda t: t.store_s),
)


def tier_families(engines: Sequence[tuple[str, EngineSnapshot]]) -> Iterator[Metric]:
    """Yield every family, with a line for each tier of each engine."""
    for name, text, read in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=_LABELS)
        for model_name, snapshot in engines:
            for tier in snapshot.tiers:
                gauge.add_metric((model_name, tier.name), float(read(tier)))
        yield gauge
    for name, text, read in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=_LABELS)
        for model_name, snapshot in engines:
            for tier in snapshot.tiers:
                counter.add_metric((model_name, tier.name), float(read(tier)))
        yield counter
