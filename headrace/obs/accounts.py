"""What the accounts of a gateway are doing: decisions, batches, what waits for the database.

Owns no counts; reads them when somebody scrapes. Rendered by `obs.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from headrace.core.stats import AdmissionStats


def families(stats: AdmissionStats) -> Iterator[Metric]:
    """Yield the families of one gateway."""
    yield GaugeMetricFamily("headrace_admitted_requests", "Requests under way that limits count", value=stats.live)
    yield GaugeMetricFamily("headrace_unwritten_commands", "Reservations and settlements not written yet", stats.late)
    yield GaugeMetricFamily(
        "headrace_allowances", "Parts of limits and budgets that this gateway holds for callers", stats.allowances
    )
    for name, text, value in (
        ("headrace_drawn_admissions", "Requests granted out of them, without a wait for the database", stats.drawn),
        ("headrace_account_batches", "Transactions over accounts", stats.batches),
        ("headrace_account_commands", "Reservations, settlements and renewals in them", stats.commands),
        ("headrace_account_failures", "Transactions that the database failed", stats.failures),
        ("headrace_expired_reservations", "Reservations of gateways that were gone, released", stats.expired),
        ("headrace_unshared_admissions", "Requests admitted while there was no database", stats.shadowed),
    ):
        yield CounterMetricFamily(name, text, value=value)
    refused = CounterMetricFamily(
        "headrace_admission_refusals", "Requests refused by limits and budgets", labels=("code",)
    )
    for code, count in stats.refused.items():
        refused.add_metric((code,), count)
    yield refused
