"""One vocabulary for what a load test measured, computed from one event log.

    ttfc   first chunk after send            ttft   first non-empty content after send
    itl    gaps between content chunks       tpot   (e2e - ttft) / (output tokens - 1), per request
    e2e    send to last content              throughput  output tokens of all requests / wall time of the run

Percentiles are linear (numpy's type 7) over the pooled raw values, never averages of percentiles. A request that failed
counts in `failed` and in the wall time, in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np


@dataclass(slots=True)
class RequestLog:
    """Raw events of one request; times in seconds on one monotonic clock. Written by the client, read here."""

    scheduled_s: float
    sent_s: float = 0.0
    first_chunk_s: float | None = None
    content_s: list[float] = field(default_factory=list)
    done_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None


class Distribution(msgspec.Struct, frozen=True):
    """Mean, spread and percentiles of one quantity, in milliseconds; count 0 means nothing was measured."""

    count: int
    mean: float = 0.0
    std: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one run under load came to."""

    duration_s: float
    completed: int
    failed: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    requests_per_s: float
    ttft_ms: Distribution
    itl_ms: Distribution
    tpot_ms: Distribution
    e2e_ms: Distribution
    errors: tuple[str, ...] = ()


def distribution(seconds: Iterable[float]) -> Distribution:
    """Summarize values given in seconds as milliseconds."""
    values = np.fromiter(seconds, dtype=np.float64) * 1e3
    if values.size == 0:
        return Distribution(count=0)
    p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99])
    return Distribution(
        int(values.size), float(values.mean()), float(values.std()), *map(float, (p50, p90, p95, p99, values.max()))
    )


def summarize(logs: Sequence[RequestLog]) -> LoadReport:
    """Pool the logs of one run. Wall time runs from the first send to the last end, failures included."""
    good = [log for log in logs if log.error is None and log.content_s]
    start = min((log.sent_s for log in logs), default=0.0)
    duration = max((log.done_s for log in logs), default=0.0) - start
    output = sum(log.output_tokens for log in good)
    gaps = (after - before for log in good for before, after in zip(log.content_s, log.content_s[1:], strict=False))
    return LoadReport(
        duration_s=duration,
        completed=len(good),
        failed=len(logs) - len(good),
        prompt_tokens=sum(log.prompt_tokens for log in good),
        output_tokens=output,
        output_tokens_per_s=output / duration if duration > 0 else 0.0,
        requests_per_s=len(good) / duration if duration > 0 else 0.0,
        ttft_ms=distribution(log.content_s[0] - log.sent_s for log in good),
        itl_ms=distribution(gaps),
        tpot_ms=distribution(
            (log.content_s[-1] - log.content_s[0]) / (log.output_tokens - 1) for log in good if log.output_tokens > 1
        ),
        e2e_ms=distribution(log.content_s[-1] - log.sent_s for log in good),
        errors=tuple(sorted({log.error or "no content" for log in logs if log not in good})),
    )
