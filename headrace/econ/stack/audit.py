"""The audit of a stack: bill, provision, latency, traffic and improvements, from one reading of the ledger.

Owns the order, and the sentences about what the records do not say. Pure: the same ledger gives the same audit.
Invariant: the lines' parts add up to the bill; `check` proves it against the rows.
"""

from __future__ import annotations

import msgspec

from headrace.econ.stack.bill import CostLine, bill
from headrace.econ.stack.break_even import BreakEven, compare
from headrace.econ.stack.configuration import Servers
from headrace.econ.stack.improvements import judge
from headrace.econ.stack.latency import Drivers, drivers
from headrace.econ.stack.provision import Provision, provision
from headrace.econ.stack.rows import Ledger, ReferencePrice, StepFit
from headrace.econ.stack.savings import DAY_NS, Evidence, Improvement, NotJudged, span
from headrace.econ.stack.traffic import Traffic, traffic

_LEAST_REMOTE_TOKENS = 1000


class StackAudit(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found. Money in nano-dollars, times in nanoseconds.

    covered_ns  from the first record of the period to the last
    unserved    requests that no engine or upstream ever served: refused, or given up while they waited
    caveats     what the records do not say, in sentences
    """

    since_ns: int
    until_ns: int
    covered_ns: int
    total_nano: int
    lines: list[CostLine]
    unserved: int
    provisions: list[Provision]
    comparisons: list[BreakEven]
    latencies: list[Drivers]
    traffic: Traffic
    improvements: list[Improvement]
    not_judged: list[NotJudged]
    caveats: list[str]


def audit(
    ledger: Ledger, against: list[ReferencePrice], fits: tuple[StepFit, StepFit] | None = None, *, is_part: bool = False
) -> StackAudit:
    """Judge what was read. `is_part`: a filter has left requests out."""
    servers = Servers(ledger.spans, ledger.builds)
    lines, unserved = bill(ledger, servers)
    provisions = provision(ledger.spans, servers)
    prices = against + _paid(lines)
    own = {each.configuration: each for each in provisions}
    pairs = [] if is_part else [(line, own[line.configuration]) for line in lines if line.configuration in own]
    comparisons = [
        found for line, life in pairs for price in prices if (found := compare(line, life, price)) is not None
    ]
    evidence = Evidence(
        requests=ledger.requests,
        covered_ns=covered_ns(ledger),
        lines=lines,
        provisions=[] if is_part else provisions,
        comparisons=comparisons,
        latencies=drivers(ledger.requests),
        traffic=traffic(ledger.requests),
        fits=fits,
    )
    improvements, not_judged = judge(evidence)
    return StackAudit(
        since_ns=ledger.since_ns,
        until_ns=ledger.until_ns,
        covered_ns=evidence.covered_ns,
        total_nano=sum(line.total_nano for line in lines),
        lines=lines,
        unserved=unserved,
        provisions=provisions,
        comparisons=comparisons,
        latencies=evidence.latencies,
        traffic=evidence.traffic,
        improvements=improvements,
        not_judged=not_judged,
        caveats=list(_caveats(ledger, evidence, is_part=is_part)),
    )


def covered_ns(ledger: Ledger) -> int:
    """Return the time from the first record to the last, as far as it lies in the period."""
    begins = [row.settled_ns - sum(row.parts_ns or ()) for row in ledger.requests]
    begins += [each.from_ns for each in ledger.spans]
    ends = [row.settled_ns for row in ledger.requests] + [each.until_ns for each in ledger.spans]
    if not ends:
        return 0
    return max(min(max(ends), ledger.until_ns) - max(min(begins), ledger.since_ns), 1)


def _paid(lines: list[CostLine]) -> list[ReferencePrice]:
    """Return the prices that remote upstreams were paid, from what was paid: a fair measure of what is to be had."""
    found = []
    for line in lines:
        if line.configuration.is_remote and line.fresh_tokens + line.output_tokens > _LEAST_REMOTE_TOKENS:
            fresh = line.fresh_nano * 10**6 // line.fresh_tokens if line.fresh_tokens else 0
            output = line.output_nano * 10**6 // line.output_tokens if line.output_tokens else 0
            cached = line.cached_nano * 10**6 // line.cached_tokens if line.cached_tokens else fresh
            if fresh and output:
                found.append(ReferencePrice(line.configuration.model, fresh, cached, output))
    return found


def _caveats(ledger: Ledger, evidence: Evidence, *, is_part: bool) -> list[str]:
    said = []
    if evidence.covered_ns < DAY_NS:
        said.append(
            f"The records cover {span(evidence.covered_ns)}; amounts per day assume that a day goes on like that."
        )
    if any(line.configuration.nano_per_hour is None for line in evidence.lines if not line.configuration.is_remote):
        said.append("The rate of a machine is not known: set gateway.usd_per_hour; its time is in no amount.")
    if unpriced := sum(line.unpriced for line in evidence.lines if line.configuration.is_remote):
        said.append(
            f"{unpriced:,} requests to remote upstreams have no price: set gateway.prices; they are in no amount."
        )
    if old := sum(row.parts_ns is None for row in ledger.requests):
        said.append(f"{old:,} requests were recorded without their course; they count in the bill, not in latencies.")
    if is_part:
        said.append(
            "Only some requests are looked at: an engine's idle and other time is theirs by engine time used, and "
            "whole machines are not judged."
        )
    return said
