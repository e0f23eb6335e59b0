"""What was provisioned against what was computed: where the engines' time went, and when it was idle.

Owns the sums over spans. Utilization here is busy time over provisioned time: a step was being made. It says nothing
of how full the steps were, and is not the utilization that a device reports of itself.
"""

from __future__ import annotations

import msgspec

from headrace.econ.attribution import divide
from headrace.econ.engines import EngineSpan
from headrace.econ.stack.bill import pool_times
from headrace.econ.stack.configuration import Configuration, Servers

_HOUR_NS = 3_600 * 10**9
LONG_IDLE_NS = 15 * 60 * 10**9


class Provision(msgspec.Struct, frozen=True, kw_only=True):
    """The life of all engines of one configuration.

    starts             lives that began in the period
    busiest_hour       share of the busiest hour of the clock in which steps were made
    cached_ns          set aside for cached prefixes and not paid by requests so far
    long_idle_ns       time in stretches of at least 15 minutes without a step; `long_idles` is their number
    """

    configuration: Configuration
    engines: int
    starts: int
    total_ns: int
    loading_ns: int
    requests_ns: int
    recomputed_ns: int
    abandoned_ns: int
    idle_ns: int
    cached_ns: int
    loading_nano: int
    recomputed_nano: int
    abandoned_nano: int
    idle_nano: int
    cached_nano: int
    busiest_hour: float
    long_idle_ns: int
    long_idles: int

    @property
    def busy_ns(self) -> int:
        """Return the time in which steps were made."""
        return self.requests_ns + self.recomputed_ns + self.abandoned_ns

    @property
    def utilization(self) -> float:
        """Return busy time over provisioned time, 0 to 1."""
        return self.busy_ns / self.total_ns if self.total_ns else 0.0


def provision(spans: list[EngineSpan], servers: Servers) -> list[Provision]:
    """Sum up every configuration's engines, the longest provisioned first. `spans` are in the order of time."""
    found: dict[Configuration, list[EngineSpan]] = {}
    for span in spans:
        found.setdefault(servers.of_engine[span.engine], []).append(span)
    lines = [_sum(configuration, own) for configuration, own in found.items()]
    return sorted(lines, key=lambda line: (-line.total_ns, line.configuration.label))


def _sum(configuration: Configuration, spans: list[EngineSpan]) -> Provision:
    times = [sum(column) for column in zip(*(pool_times(span) for span in spans), strict=True)]
    nano = [0, 0, 0, 0]
    for span in spans:
        if span.pool_nano is not None:
            nano = [a + b for a, b in zip(nano, divide(span.pool_nano, pool_times(span)), strict=True)]
    long_idles = _long_idles(spans)
    return Provision(
        configuration=configuration,
        engines=len({span.engine for span in spans}),
        starts=len({span.engine for span in spans if span.loading_ns}),
        total_ns=sum(span.total_ns for span in spans),
        loading_ns=times[0],
        requests_ns=sum(span.requests_ns for span in spans),
        recomputed_ns=times[1],
        abandoned_ns=times[2],
        idle_ns=times[3],
        cached_ns=sum(span.cached_ns for span in spans),
        loading_nano=nano[0],
        recomputed_nano=nano[1],
        abandoned_nano=nano[2],
        idle_nano=nano[3],
        cached_nano=sum(span.cached_nano or 0 for span in spans),
        busiest_hour=_busiest_hour(spans),
        long_idle_ns=sum(long_idles),
        long_idles=len(long_idles),
    )


def _busiest_hour(spans: list[EngineSpan]) -> float:
    """Return the busy share of the busiest hour of the clock; a span counts to the hour that it began in."""
    busy: dict[int, int] = {}
    total: dict[int, int] = {}
    for span in spans:
        hour = span.from_ns // _HOUR_NS
        busy[hour] = busy.get(hour, 0) + span.busy_ns
        total[hour] = total.get(hour, 0) + span.total_ns
    return max((busy[hour] / total[hour] for hour in total if total[hour]), default=0.0)


def _long_idles(spans: list[EngineSpan]) -> list[int]:
    """Return the long stretches of an engine's life without a step."""
    stretches: list[int] = []
    running: dict[str, int] = {}
    for span in spans:
        if span.busy_ns == 0 and span.loading_ns == 0:
            running[span.engine] = running.get(span.engine, 0) + span.total_ns
        else:
            stretches.append(running.pop(span.engine, 0))
    stretches += running.values()
    return [stretch for stretch in stretches if stretch >= LONG_IDLE_NS]
