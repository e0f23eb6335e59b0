"""What happens at the door, before a request has a model: refusals, and headers that claim a tenant.

Owns these counters. Counted on the network thread, rendered by `obs.metrics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, Metric

from headrace.core.errors import HeadraceError


class DoorMetrics:
    """Counts of the door."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.stripped: Counter[str] = Counter()
        self.degraded: Callable[[], Mapping[tuple[str, str, str], int]] = dict

    def on_refused(self, error: HeadraceError) -> None:
        """Count a call that was turned away."""
        self.refused[error.code] += 1

    def on_stripped(self, header: str) -> None:
        """Count a header that was taken off a call."""
        self.stripped[header] += 1

    def families(self) -> Iterator[Metric]:
        """Yield the counters."""
        for name, text, label, counts in (
            ("headrace_door_refusals", "Calls turned away before their body was read", "code", self.refused),
            ("headrace_stripped_headers", "Headers that claimed a tenant, taken off", "header", self.stripped),
        ):
            family = CounterMetricFamily(name, text, labels=(label,))
            for value, count in counts.items():
                family.add_metric((value,), count)
            yield family
        degraded = CounterMetricFamily(
            "headrace_degraded",
            "Calls that were given less than they asked",
            labels=("model", "step", "reason"),
        )
        for labels, count in self.degraded().items():
            degraded.add_metric(labels, count)
        yield degraded
