"""Tokens and requests by tenant, as far as there are few of them.

Owns these counters of one engine. Invariant: at most `_MOST_NAMED` tenants have a name of their own, in the order of
their first request; what the others use is counted under `other`, so that a scrape stays small whoever comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from headrace.core.stats import RequestStats

_MOST_NAMED = 100
_OTHER = "other"
_LABELS = ("model_name", "tenant")


class TenantCounts:
    """What each tenant's ended requests have used."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()

    def on_finished(self, stats: RequestStats) -> None:
        """Count an ended request; nothing where there are no tenants."""
        if not stats.tenant:
            return
        is_known = stats.tenant in self._requests or len(self._requests) < _MOST_NAMED
        tenant = stats.tenant if is_known else _OTHER
        self._requests[tenant] += 1
        self._tokens[tenant, "prompt"] += stats.prompt_tokens
        self._tokens[tenant, "cached"] += stats.cached_tokens
        self._tokens[tenant, "output"] += stats.completion_tokens

    def requests(self) -> Iterator[tuple[str, int]]:
        """Yield (tenant, ended requests)."""
        yield from self._requests.items()

    def tokens(self) -> Iterator[tuple[str, str, int]]:
        """Yield (tenant, kind, tokens); cached tokens are prompt tokens as well."""
        for (tenant, kind), count in self._tokens.items():
            yield tenant, kind, count


def tenant_families(engines: Iterable[tuple[str, TenantCounts]]) -> Iterator[Metric]:
    """Yield the counters of all engines."""
    requests = CounterMetricFamily("headrace_tenant_requests", "Requests that have ended, by tenant", labels=_LABELS)
    tokens = CounterMetricFamily(
        "headrace_tenant_tokens",
        "Tokens of ended requests, by tenant: prompt, cached of it, output",
        labels=(*_LABELS, "kind"),
    )
    for model_name, counts in engines:
        for tenant, count in counts.requests():
            requests.add_metric((model_name, tenant), count)
        for tenant, kind, count in counts.tokens():
            tokens.add_metric((model_name, tenant, kind), count)
    yield requests
    yield tokens
