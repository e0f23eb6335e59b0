from __future__ import annotations

from headrace.core.delta import FinishReason
from headrace.core.request import RequestId
from headrace.core.stats import RequestStats
from headrace.obs.tenants import TenantCounts, tenant_families


def ended(tenant: str) -> RequestStats:
    return RequestStats(
        request_id=RequestId("r"),
        model="m",
        prompt_tokens=10,
        completion_tokens=3,
        cached_tokens=8,
        finishes=(FinishReason.STOP,),
        arrival_s=0.0,
        first_scheduled_s=None,
        first_token_s=None,
        finished_s=1.0,
        num_preemptions=0,
        tenant=tenant,
    )


def test_tokens_are_counted_by_tenant_and_kind() -> None:
    counts = TenantCounts()
    for tenant in ("acme", "acme", "zoo", ""):
        counts.on_finished(ended(tenant))
    assert dict(counts.requests()) == {"acme": 2, "zoo": 1}
    assert set(counts.tokens()) >= {("acme", "prompt", 20), ("acme", "cached", 16), ("acme", "output", 6)}
    requests, tokens = tenant_families([("m", counts)])
    assert len(requests.samples) == 2
    assert len(tokens.samples) == 6


def test_the_names_are_limited_and_nothing_is_lost() -> None:
    counts = TenantCounts()
    for number in range(300):
        counts.on_finished(ended(f"tenant-{number}"))
    requests = dict(counts.requests())
    assert len(requests) == 101
    assert requests["other"] == 200
    assert sum(requests.values()) == 300
