"""What the traffic is like: when, how long, how much of it is said again, by whom, and how answers end.

Owns the counts. Content is never looked at: repeats and common beginnings are told by the ledger's keyed digests.
Bounded: beyond MOST_KEYS distinct digests new ones are not followed, so what is said of repeats is then a lower bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from headrace.econ.percentiles import quantile
from headrace.econ.stack.rows import PREFIX_DIGITS, PREFIX_LEVELS, RequestRow

MOST_KEYS = 500_000
_HOUR_NS = 3_600 * 10**9


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """How long something is, in tokens; `counts` by upper bound: powers of two."""

    p50: float
    p90: float
    p99: float
    longest: int
    counts: tuple[tuple[int, int], ...]


class TenantShare(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's part."""

    tenant: str
    requests: int
    tokens: int
    engine_ns: int


class CommonPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """A beginning that many prompts of one tenant and model share.

    length        tokens, of those that digests are kept for
    requests      that begin with it, of `of_requests` of this tenant and model
    missed_tokens prompt tokens of it that were computed though an earlier request had computed them
    """

    model: str
    tenant: str
    length: int
    requests: int
    of_requests: int
    missed_tokens: int


class Repeats(msgspec.Struct, frozen=True, kw_only=True):
    """Requests whose equal was answered before; `exact` are those of them whose answer was bound to be the same."""

    requests: int
    exact_remote: int
    exact_here: int
    of_requests: int
    exact_remote_nano: int
    exact_machine_nano: int

    @property
    def exact(self) -> int:
        """Return all whose answer was bound to be the same."""
        return self.exact_remote + self.exact_here


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """The profile. `by_hour` counts requests by the hour of the day they ended in, UTC.

    Lengths are those of requests whose tokens are known: one that failed on its way has none.
    """

    requests: int
    by_hour: tuple[int, ...]
    input: Lengths
    output: Lengths
    input_tokens: int
    cached_tokens: int
    streamed: int
    outcomes: tuple[tuple[str, int], ...]
    tenants: tuple[TenantShare, ...]
    repeats: Repeats
    prefixes: tuple[CommonPrefix, ...]
    has_digests: bool


class _Seen(NamedTuple):
    """A beginning: how often it came, and how much of it was computed in all and by its first."""

    requests: int
    computed: int
    first: int


def traffic(rows: Sequence[RequestRow]) -> Traffic:
    """Describe the requests. `rows` are in the order of time."""
    inputs = [row.fresh + row.cache_read for row in rows]
    told = [row for row, tokens in zip(rows, inputs, strict=True) if tokens or row.output]
    return Traffic(
        requests=len(rows),
        by_hour=_by_hour(rows),
        input=_lengths([row.fresh + row.cache_read for row in told]),
        output=_lengths([row.output for row in told]),
        input_tokens=sum(inputs),
        cached_tokens=sum(row.cache_read for row in rows),
        streamed=sum(row.is_stream or 0 for row in rows),
        outcomes=tuple(Counter(row.outcome for row in rows).most_common()),
        tenants=_tenants(rows),
        repeats=_repeats(rows),
        prefixes=_prefixes(rows),
        has_digests=any(row.request_digest is not None for row in rows),
    )


def _by_hour(rows: Sequence[RequestRow]) -> tuple[int, ...]:
    counts = Counter(row.settled_ns // _HOUR_NS % 24 for row in rows)
    return tuple(counts[hour] for hour in range(24))


def _lengths(values: Sequence[int]) -> Lengths:
    ordered = sorted(values)
    buckets = Counter(max(1, 1 << (value - 1).bit_length()) if value else 0 for value in ordered)
    bounds = [0] if buckets[0] else []
    positive = [bound for bound in buckets if bound]
    if positive:
        bound = min(positive)
        while bound <= max(positive):
            bounds.append(bound)
            bound *= 2
    return Lengths(
        p50=quantile(ordered, 0.5),
        p90=quantile(ordered, 0.9),
        p99=quantile(ordered, 0.99),
        longest=ordered[-1] if ordered else 0,
        counts=tuple((bound, buckets[bound]) for bound in bounds),
    )


def _tenants(rows: Sequence[RequestRow]) -> tuple[TenantShare, ...]:
    sums: dict[str, list[int]] = {}
    for row in rows:
        own = sums.setdefault(row.tenant, [0, 0, 0])
        own[0] += 1
        own[1] += row.fresh + row.cache_read + row.output
        own[2] += row.engine_ns
    shares = [TenantShare(tenant=name, requests=s[0], tokens=s[1], engine_ns=s[2]) for name, s in sums.items()]
    return tuple(sorted(shares, key=lambda share: (-share.tokens, share.tenant)))


def _repeats(rows: Sequence[RequestRow]) -> Repeats:
    seen: set[tuple[str, str]] = set()
    again = exact_remote = exact_here = remote_nano = machine_nano = 0
    for row in rows:
        if row.request_digest is None:
            continue
        key = (row.tenant, row.request_digest)  # an answer is never another tenant's
        if key not in seen:
            if len(seen) < MOST_KEYS:
                seen.add(key)
            continue
        again += 1
        if row.is_repeatable and row.engine is None and row.upstream_ns:
            exact_remote += 1
            remote_nano += row.remote_nano or 0
        elif row.is_repeatable:
            exact_here += 1
            machine_nano += row.machine_nano or 0
    known = sum(row.request_digest is not None for row in rows)
    return Repeats(
        requests=again,
        exact_remote=exact_remote,
        exact_here=exact_here,
        of_requests=known,
        exact_remote_nano=remote_nano,
        exact_machine_nano=machine_nano,
    )


def _prefixes(rows: Sequence[RequestRow]) -> tuple[CommonPrefix, ...]:
    """Find for each tenant and model the beginning that was most often computed again."""
    seen: dict[tuple[str, str, int, str], _Seen] = {}
    totals: Counter[tuple[str, str]] = Counter()
    for row in rows:
        totals[row.model, row.tenant] += 1
        digests = row.prefix_digests or ""
        for index, length in enumerate(PREFIX_LEVELS[: len(digests) // PREFIX_DIGITS]):
            key = (row.model, row.tenant, length, digests[: (index + 1) * PREFIX_DIGITS][-PREFIX_DIGITS:])
            computed = max(length - row.cache_read, 0)
            old = seen.get(key)
            if old is not None:
                seen[key] = _Seen(old.requests + 1, old.computed + computed, old.first)
            elif len(seen) < MOST_KEYS:
                seen[key] = _Seen(1, computed, computed)
    best: dict[tuple[str, str], CommonPrefix] = {}
    for (model, tenant, length, _), found in seen.items():
        if found.requests < 2:
            continue
        prefix = CommonPrefix(
            model=model,
            tenant=tenant,
            length=length,
            requests=found.requests,
            of_requests=totals[model, tenant],
            missed_tokens=found.computed - found.first,
        )
        known = best.get((model, tenant))
        if known is None or _weight(prefix) > _weight(known):
            best[model, tenant] = prefix
    return tuple(sorted(best.values(), key=_weight, reverse=True))


def _weight(prefix: CommonPrefix) -> tuple[int, int]:
    return prefix.missed_tokens, prefix.requests * prefix.length
