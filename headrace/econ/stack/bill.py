"""The bill, by configuration: what input, cached input and output cost, and what nobody used.

Owns the sums. Whole nano-dollars throughout: a line's parts are divided by largest remainder, so they add up to the
line, and the lines to the bill.

    an engine of ours   a request's machine cost │ its rent for cached input; the rest by the engine time of its prompt
                                                 │ and of its answer
                        the pool's cost          │ by its time: loading, recomputed, abandoned, idle
                        cached prefixes          │ what was set aside for them, less the rent that requests paid
    a remote upstream   what it reported, else   │ as the price divides it
                        the request's price      │

Where only some requests are looked at, they bear the part of an engine's pool that their engine time is of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from headrace.econ.attribution import divide
from headrace.econ.engines import EngineSpan
from headrace.econ.stack.configuration import Configuration, Servers
from headrace.econ.stack.rows import Ledger, RequestRow

POOL = ("loading", "recomputed", "abandoned", "idle")


class CostLine(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration's part of the bill.

    resting_nano  of cached prefixes that no request has paid for so far; negative where it was set aside before
    unsplit_nano  of requests whose row does not say what was for input and what for output
    unpriced      requests whose cost is not known: in none of the sums
    """

    configuration: Configuration
    requests: int
    fresh_tokens: int
    cached_tokens: int
    output_tokens: int
    fresh_nano: int
    cached_nano: int
    output_nano: int
    unsplit_nano: int
    loading_nano: int
    recomputed_nano: int
    abandoned_nano: int
    idle_nano: int
    resting_nano: int
    engine_ns: int
    unpriced: int

    @property
    def used_nano(self) -> int:
        """Return what requests cost."""
        return self.fresh_nano + self.cached_nano + self.output_nano + self.unsplit_nano

    @property
    def pool_nano(self) -> int:
        """Return what nobody used."""
        return self.loading_nano + self.recomputed_nano + self.abandoned_nano + self.idle_nano + self.resting_nano

    @property
    def total_nano(self) -> int:
        """Return this line of the bill."""
        return self.used_nano + self.pool_nano

    @property
    def tokens(self) -> int:
        """Return all tokens that were read or written."""
        return self.fresh_tokens + self.cached_tokens + self.output_tokens


def per_mtok(nano: int, tokens: int) -> float | None:
    """Return dollars per million tokens: Σ cost / Σ tokens, never a mean of ratios; None without tokens."""
    return None if not tokens else nano / tokens / 1e3


@dataclass(slots=True)
class _Sums:
    requests: int = 0
    fresh_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    fresh_nano: int = 0
    cached_nano: int = 0
    output_nano: int = 0
    unsplit_nano: int = 0
    loading_nano: int = 0
    recomputed_nano: int = 0
    abandoned_nano: int = 0
    idle_nano: int = 0
    resting_nano: int = 0
    engine_ns: int = 0
    unpriced: int = 0


def bill(ledger: Ledger, servers: Servers) -> tuple[list[CostLine], int]:
    """Return the lines, the dearest first, and the number of requests that never reached an engine."""
    sums: dict[Configuration, _Sums] = {}
    engine_ns: dict[str, int] = {}
    unserved = 0
    for row in ledger.requests:
        found = servers.find(row.model, row.engine, row.engine_ns)
        if found is None:
            unserved += 1
            continue
        _add(sums.setdefault(found, _Sums()), row, is_remote=found.is_remote)
        if row.engine is not None:
            engine_ns[row.engine] = engine_ns.get(row.engine, 0) + row.engine_ns
    for engine, parts in _pools(ledger, engine_ns):
        into = sums.setdefault(servers.of_engine[engine], _Sums())
        into.loading_nano += parts[0]
        into.recomputed_nano += parts[1]
        into.abandoned_nano += parts[2]
        into.idle_nano += parts[3]
        into.resting_nano += parts[4]
    lines = [
        CostLine(configuration=configuration, **{name: getattr(found, name) for name in _Sums.__slots__})
        for configuration, found in sums.items()
    ]
    return sorted(lines, key=lambda line: (-line.total_nano, line.configuration.label)), unserved


def _add(into: _Sums, row: RequestRow, *, is_remote: bool) -> None:
    into.requests += 1
    into.fresh_tokens += row.fresh
    into.cached_tokens += row.cache_read
    into.output_tokens += row.output
    into.engine_ns += row.engine_ns
    nano = row.remote_nano if is_remote else row.machine_nano
    if nano is None:
        into.unpriced += 1
    elif is_remote and row.cost_nano and row.cached_nano is not None and row.output_nano is not None:
        fresh_nano = row.cost_nano - row.cached_nano - row.output_nano
        fresh, cached, output = divide(nano, [fresh_nano, row.cached_nano, row.output_nano])
        into.fresh_nano += fresh
        into.cached_nano += cached
        into.output_nano += output
    elif not is_remote and row.engine is not None and row.engine_ns:
        rent = row.rent_nano or 0
        fresh, output = divide(nano - rent, [row.prompt_ns, row.engine_ns - row.rent_ns - row.prompt_ns])
        into.cached_nano += rent
        into.fresh_nano += fresh
        into.output_nano += output
    else:
        into.unsplit_nano += nano


def _pools(ledger: Ledger, engine_ns: dict[str, int]) -> Iterator[tuple[str, list[int]]]:
    """Yield each span's pool, in parts, as far as the requests that are looked at bear it."""
    for span in ledger.spans:
        if span.pool_nano is None:
            continue
        parts = [*divide(span.pool_nano, pool_times(span)), span.cached_nano or 0]
        others = ledger.others_ns.get(span.engine, 0)
        if others:
            own = engine_ns.get(span.engine, 0)
            parts = [_share(part, own, others) for part in parts]
        yield span.engine, parts


def _share(part: int, own: int, others: int) -> int:
    """Return the part of a cost, which may be negative, by engine time used."""
    return divide(part, [own, others])[0] if part >= 0 else -divide(-part, [own, others])[0]


def pool_times(span: EngineSpan) -> list[int]:
    """Return the pool's times in the order of POOL."""
    return [span.loading_ns, span.recomputed_ns, span.abandoned_ns, span.idle_ns]
