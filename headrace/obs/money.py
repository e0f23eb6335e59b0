"""Money as metrics: what the machine cost and whose time that was, and what callers were charged.

Owns nothing; reads the engines' accounts of time when somebody scrapes. The ledger is exact and has the tenants; these
are for dashboards, so they are in dollars and have no tenants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from headrace.core.stats import EngineSnapshot, EngineTime

_ACCOUNTS = ("loading", "requests", "recomputed", "abandoned", "idle", "cached")
_NANO = 1e9
_NS_PER_HOUR = 3.6e12
_LABELS = ("model_name",)


def engine_families(engines: Sequence[tuple[str, EngineSnapshot]], nano_per_hour: int | None) -> Iterator[Metric]:
    """Yield the engines' time by whose it was, and what it cost where the machine's price is known."""
    time = CounterMetricFamily(
        "headrace_engine_time_seconds", "The engine's time by whose it was; all of it", labels=(*_LABELS, "account")
    )
    cost = CounterMetricFamily(
        "headrace_engine_usd", "What that time cost, at gateway.usd_per_hour", labels=(*_LABELS, "account")
    )
    rent = CounterMetricFamily(
        "headrace_cache_rent_seconds", "Of the time of cached: paid by requests that used the prefix", labels=_LABELS
    )
    for model_name, snapshot in engines:
        if snapshot.time is None:
            continue
        for account in _ACCOUNTS:
            spent_ns = _read(snapshot.time, account)
            time.add_metric((model_name, account), spent_ns / 1e9)
            if nano_per_hour is not None:
                cost.add_metric((model_name, account), spent_ns / _NS_PER_HOUR * nano_per_hour / _NANO)
        rent.add_metric((model_name,), snapshot.time.rent_ns / 1e9)
    rate = GaugeMetricFamily("headrace_machine_usd_per_hour", "What this machine costs in an hour")
    if nano_per_hour is not None:
        rate.add_metric((), nano_per_hour / _NANO)
    yield from (time, cost, rent, rate)


def charge_families(charged_nano: Mapping[str, int], budgets: Mapping[str, float]) -> Iterator[Metric]:
    """Yield what callers were charged, by model, and how full budgets are."""
    charged = CounterMetricFamily("headrace_charged_usd", "What callers were charged since the start", labels=_LABELS)
    for model_name, nano in charged_nano.items():
        charged.add_metric((model_name,), nano / _NANO)
    used = GaugeMetricFamily(
        "headrace_budget_used_ratio",
        "Share that a budget's fullest account has spent, as of its last request; the 50 fullest budgets",
        labels=("budget",),
    )
    for budget, ratio in budgets.items():
        used.add_metric((budget,), ratio)
    yield from (charged, used)


def _read(time: EngineTime, account: str) -> int:
    """Return an account that only grows: rent stays where it was set aside, and is counted as such."""
    spent_ns: int = getattr(time, f"{account}_ns")
    if account == "cached":
        return spent_ns + time.rent_ns
    return spent_ns - time.rent_ns if account == "requests" else spent_ns
