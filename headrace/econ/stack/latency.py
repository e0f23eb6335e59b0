"""What makes slow requests slow: where their time was, beside requests of the middle.

Pure functions. Looks at answers that ended by themselves; those given up or refused have other reasons. The slowest are
the slowest hundredth, one at least; the middle is the tenth around the median. The driver is the part that grew most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from headrace.econ.percentiles import quantile
from headrace.econ.stack.rows import PARTS, RequestRow

ENDED = frozenset(("stop", "length", "tool_calls", "content_filter", "pause_turn"))
ENOUGH = 100


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The mean request of a group: its time in parts (in the order of PARTS), and what it was like."""

    requests: int
    parts_ns: tuple[float, ...]
    fresh_tokens: float
    cached_tokens: float
    output_tokens: float
    preemptions: float
    tenant: str
    tenant_share: float

    @property
    def total_ns(self) -> float:
        """Return the mean time."""
        return sum(self.parts_ns)


class Drivers(msgspec.Struct, frozen=True, kw_only=True):
    """One latency of all requests. `driver_share` is the part of the slowness that the driver explains."""

    what: str
    requests: int
    p50_ns: float
    p90_ns: float
    p99_ns: float
    middle: Group
    slowest: Group
    driver: str
    driver_share: float

    @property
    def is_enough(self) -> bool:
        """Say whether a hundredth is more than chance."""
        return self.requests >= ENOUGH


def drivers(rows: Sequence[RequestRow]) -> list[Drivers]:
    """Explain the time to the end and the time to the first token; nothing where no row says."""
    ended = [(row, parts) for row in rows if row.outcome in ENDED and (parts := row.parts_ns) is not None]
    whole = [(sum(parts), row, parts) for row, parts in ended]
    first = [(row.ttft_ns, row, _until_first(row, parts)) for row, parts in ended if row.ttft_ns is not None]
    return [_explain(what, found) for what, found in (("to the end", whole), ("to the first token", first)) if found]


def _until_first(row: RequestRow, parts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the parts up to the first token: a remote upstream's are one, an engine's are known."""
    assert row.ttft_ns is not None
    left, cut = row.ttft_ns, []
    for part in parts:
        cut.append(min(part, left))
        left -= cut[-1]
    return tuple(cut)


def _explain(what: str, found: list[tuple[int, RequestRow, tuple[int, ...]]]) -> Drivers:
    found.sort(key=lambda each: each[0])
    times = [time for time, _, _ in found]
    num = len(found)
    middle = _group(found[num * 45 // 100 : max(-(-num * 55 // 100), num * 45 // 100 + 1)])
    slowest = _group(found[num - -(-num // 100) :])
    growth = [max(slow - usual, 0.0) for slow, usual in zip(slowest.parts_ns, middle.parts_ns, strict=True)]
    worst = max(range(len(PARTS)), key=lambda index: growth[index])
    return Drivers(
        what=what,
        requests=num,
        p50_ns=quantile(times, 0.5),
        p90_ns=quantile(times, 0.9),
        p99_ns=quantile(times, 0.99),
        middle=middle,
        slowest=slowest,
        driver=PARTS[worst],
        driver_share=growth[worst] / sum(growth) if sum(growth) else 0.0,
    )


def _group(found: list[tuple[int, RequestRow, tuple[int, ...]]]) -> Group:
    num, rows = len(found), [row for _, row, _ in found]
    (tenant, times), *_ = Counter(row.tenant for row in rows).most_common(1)
    return Group(
        requests=num,
        parts_ns=tuple(sum(column) / num for column in zip(*(parts for _, _, parts in found), strict=True)),
        fresh_tokens=sum(row.fresh for row in rows) / num,
        cached_tokens=sum(row.cache_read for row in rows) / num,
        output_tokens=sum(row.output for row in rows) / num,
        preemptions=sum(row.num_preemptions for row in rows) / num,
        tenant=tenant,
        tenant_share=times / num,
    )
