"""Improvements of what is asked: beginnings and answers that are computed again, answers nobody waits for, who is in a
hurry.

Pure functions of the evidence, called by `improvements`. Each states the formula with its inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.econ.percentiles import quantile
from headrace.econ.stack.latency import ENDED
from headrace.econ.stack.rows import RequestRow
from headrace.econ.stack.savings import Evidence, Improvement, NotJudged, usd

_LEAST_SHARE = 0.05  # of prompts, for a beginning to be common
_LEAST_REPEATS = 0.02
_ENOUGH_ANSWERS = 20
_BATCH_LIKE = 0.95  # of its requests are not streamed
_BIG_SHARE = 0.2


def common_prefix(evidence: Evidence) -> Iterator[Improvement | NotJudged]:
    """Keep a beginning that many prompts share and that was computed again."""
    if not evidence.traffic.has_digests:
        yield NotJudged("common beginnings and repeats", "no digests of requests; set gateway.digests = true")
        return
    by_model = {line.configuration.model: line for line, _ in evidence.local()}
    for prefix in evidence.traffic.prefixes:
        line = by_model.get(prefix.model)
        share = prefix.requests / prefix.of_requests
        if line is None or not line.fresh_tokens or share < _LEAST_SHARE or not prefix.missed_tokens:
            continue
        per_token = line.fresh_nano / line.fresh_tokens
        nano = evidence.per_day(prefix.missed_tokens * per_token)
        if not nano:
            continue
        yield Improvement(
            title=f"keep the common first {prefix.length:,} tokens of {_whose(prefix.tenant)}prompts to {prefix.model}",
            do="pin them with `headrace warm` or server.warm, or give the KV pool more room",
            evidence=f"{prefix.requests:,} of {prefix.of_requests:,} prompts ({share:.0%}) begin with them; "
            f"{prefix.missed_tokens:,} of their tokens were computed again",
            formula=f"{prefix.missed_tokens:,} tokens · {usd(per_token * 1e6)} per million computed / "
            f"{evidence.days:.3g} days",
            nano_per_day=nano,
            is_cash=False,
            effort_h=1.0,
            wrong_if="the tokens were computed again because requests came at the same moment, or the beginning "
            "changes more often than it is used",
        )


def repeats(evidence: Evidence) -> Iterator[Improvement | NotJudged]:
    """Answer from memory what was answered before."""
    found = evidence.traffic.repeats
    if not found.of_requests or found.exact / found.of_requests < _LEAST_REPEATS:
        return
    for count, nano, where, is_cash in (
        (found.exact_remote, found.exact_remote_nano, "remote upstreams", True),
        (found.exact_here, found.exact_machine_nano, "engines here", False),
    ):
        if nano:
            yield Improvement(
                title=f"answer exact repeats to {where} from a cache",
                do="put an exact answer cache in front, by tenant, with a time to live",
                evidence=f"{count:,} of {found.of_requests:,} requests ({count / found.of_requests:.1%}) went there, "
                "equal an earlier one of the same tenant, parameters included, and are decoded greedily",
                formula=f"{usd(nano)} spent on them / {evidence.days:.3g} days",
                nano_per_day=evidence.per_day(nano),
                is_cash=is_cash,
                effort_h=8.0,
                wrong_if="answers are meant to be made anew (load tests, retries after bad answers), or repeats lie "
                "further apart than answers stay true",
            )


def abandoned_answers(evidence: Evidence) -> Iterator[Improvement | NotJudged]:
    """Cap answers that grow longer than those that anybody waits for."""
    by_asker: dict[tuple[str, str], list[RequestRow]] = {}
    for row in evidence.requests:
        by_asker.setdefault((row.model, row.tenant), []).append(row)
    lines = {line.configuration.model: line for line in reversed(evidence.lines)}
    for (model, tenant), rows in by_asker.items():
        line = lines.get(model)
        done = sorted(row.output for row in rows if row.outcome in ENDED)
        left = [row for row in rows if row.outcome == "abort"]
        if line is None or len(done) < _ENOUGH_ANSWERS or not left or not line.output_tokens:
            continue
        cap = max(round(quantile(done, 0.95)), 1)
        excess = sum(max(row.output - cap, 0) for row in left)
        per_token = line.output_nano / line.output_tokens
        nano = evidence.per_day(excess * per_token)
        if not nano:
            continue
        yield Improvement(
            title=f"cap {_whose(tenant)}answers of {model} at {cap:,} tokens",
            do="have these callers send max_tokens",
            evidence=f"{len(left):,} of its {len(rows):,} requests were left, after up to "
            f"{max(row.output for row in left):,} tokens; 95 % of the answers waited for have at most {cap:,}",
            formula=f"{excess:,} tokens beyond the cap in abandoned answers · {usd(per_token * 1e6)} per million / "
            f"{evidence.days:.3g} days",
            nano_per_day=nano,
            is_cash=line.configuration.is_remote,
            effort_h=2.0,
            wrong_if="the callers that left had got what they wanted, by reading as far as they needed",
        )


def background(evidence: Evidence) -> Iterator[Improvement | NotJudged]:
    """Let those who are in no hurry step back, where the queue is what makes slow requests slow."""
    queued = [
        each
        for each in evidence.latencies
        if each.what == "to the first token" and each.driver == "queue" and each.is_enough
    ]
    if not queued:
        return
    tokens = sum(each.tokens for each in evidence.traffic.tenants)
    streamed: dict[str, int] = {}
    for row in evidence.requests:
        streamed[row.tenant] = streamed.get(row.tenant, 0) + (row.is_stream or 0)
    for tenant in evidence.traffic.tenants:
        unhurried = 1 - streamed[tenant.tenant] / tenant.requests
        if len(evidence.traffic.tenants) < 2 or tenant.tokens < _BIG_SHARE * tokens or unhurried < _BATCH_LIKE:
            continue
        waited_s = queued[0].slowest.parts_ns[1] / 1e9
        yield Improvement(
            title=f"serve {tenant.tenant or 'callers without a tenant'} in the background",
            do="have it send service_tier 'flex': it then takes what the others leave",
            evidence=f"the slowest 1 % wait {waited_s:,.3g} s in the queue, {queued[0].driver_share:.0%} of what makes "
            f"them slow; this tenant has {tenant.tokens / tokens:.0%} of all tokens and streams {1 - unhurried:.0%} "
            "of its requests",
            formula="no dollars by itself: the same work, in another order",
            nano_per_day=0,
            is_cash=False,
            effort_h=1.0,
            wrong_if="somebody waits for these answers after all",
        )


def _whose(tenant: str) -> str:
    return f"{tenant}'s " if tenant else ""
