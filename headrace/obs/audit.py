"""What the audit log of this process is doing: rows written, waiting and given up.

Owns no counts; reads them when somebody scrapes. Rendered by `obs.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from headrace.core.stats import AuditStats


def audit_families(stats: AuditStats) -> Iterator[Metric]:
    """Yield the families of one gateway."""
    yield GaugeMetricFamily("headrace_audit_waiting_rows", "Rows of the audit log not written yet", stats.waiting)
    for name, text, value in (
        ("headrace_audit_rows", "Rows written to the audit log", stats.written),
        ("headrace_audit_lost_rows", "Events the audit log has given up; it says so itself", stats.lost),
        ("headrace_audit_refusals", "Calls refused because they could not have been recorded", stats.refused),
        ("headrace_audit_failures", "Transactions of the audit log that the database failed", stats.failures),
    ):
        yield CounterMetricFamily(name, text, value=value)
