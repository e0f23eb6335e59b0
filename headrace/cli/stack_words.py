"""What `headrace audit stack` says: tables and sentences, the same for the terminal and for the page.

Owns the words and how numbers are written; the numbers are `econ.stack`'s. Dollars per million tokens are Σ cost / Σ
tokens, never a mean of ratios.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from headrace.bench.report import Table
from headrace.econ.stack import StackAudit
from headrace.econ.stack.bill import per_mtok
from headrace.econ.stack.configuration import Configuration
from headrace.econ.stack.latency import Drivers
from headrace.econ.stack.rows import PARTS
from headrace.econ.stack.savings import span, usd
from headrace.econ.stack.traffic import TenantShare

SHOWN = 5
_MEANING = {
    "admission": "before the engine: accounts, template, tokenizer",
    "queue": "waiting for the engine",
    "prefill": "computing the prompt",
    "decode": "making the answer",
    "upstream": "at the remote upstream",
    "reading": "the caller reading slowly",
}


class Words:
    """The audit in words."""

    def __init__(self, found: StackAudit) -> None:
        self.found = found
        self.names = _names(
            [line.configuration for line in found.lines] + [own.configuration for own in found.provisions]
        )

    def headline(self) -> list[str]:
        """Say the most important things, in a few sentences."""
        found = self.found
        parts = [f"{found.traffic.requests:,} requests in {span(found.covered_ns)}, {usd(found.total_nano)}."]
        used = sum(line.used_nano for line in found.lines)
        if found.total_nano:
            idle = sum(line.idle_nano for line in found.lines)
            waste = sum(line.pool_nano - line.idle_nano for line in found.lines)
            parts.append(
                f" Of the bill {used / found.total_nano:.0%} was for requests, {idle / found.total_nano:.0%} for idle "
                f"engines, {waste / found.total_nano:.0%} for loading and for work that nobody got."
            )
        sentences = ["".join(parts)]
        sentences += [self.driver(each) for each in found.latencies]
        if found.unserved:
            sentences.append(f"{found.unserved:,} requests never reached an engine: refused, or given up in the queue.")
        return sentences

    def driver(self, each: Drivers) -> str:
        """Say what makes slow requests slow."""
        if each.requests < 2 or not each.driver_share:
            return f"Time {each.what}: {span(each.p50_ns)}, {each.requests:,} requests; no difference to explain."
        slow, middle = each.slowest, each.middle
        index = PARTS.index(each.driver)
        text = (
            f"Time {each.what}: p50 {span(each.p50_ns)}, p99 {span(each.p99_ns)}. The slowest 1 % "
            f"({slow.requests:,} of {each.requests:,}) are slow by {each.driver}, {_MEANING[each.driver]}: "
            f"{span(slow.parts_ns[index])} instead of {span(middle.parts_ns[index])}, {each.driver_share:.0%} of the "
            "difference."
        )
        if not each.is_enough:
            text += f" With {each.requests:,} requests that is an anecdote."
        return text

    def configurations(self) -> Table:
        """Show what served."""
        rows = []
        for each, name in self.names.items():
            kept = "as stored" if each.weights == "auto" else each.weights
            rate = "not known" if each.nano_per_hour is None else usd(each.nano_per_hour)
            if each.is_remote:
                rows.append((name, "remote upstream", "", "", "", "its price"))
            else:
                machine = (
                    f"{each.machine}, {each.threads} thread{'s' * (each.threads != 1)}"
                    if each.machine
                    else "not described"
                )
                rows.append(
                    (name, f"{each.backend} engine", f"{kept}, {each.bits:.1f} bits", each.kv_dtype, machine, rate)
                )
        return Table(
            title="What served",
            columns=("configuration", "by", "weights", "KV", "machine", "$ per hour"),
            rows=tuple(rows),
        )

    def costs(self) -> Table:
        """Show dollars per million tokens, by configuration."""
        rows = []
        for line in self.found.lines:
            rows.append(
                (
                    self.names[line.configuration],
                    f"{line.requests:,}",
                    f"{line.fresh_tokens:,} / {line.cached_tokens:,} / {line.output_tokens:,}",
                    _rate(line.fresh_nano, line.fresh_tokens),
                    _rate(line.cached_nano, line.cached_tokens),
                    _rate(line.output_nano, line.output_tokens),
                    _rate(line.used_nano, line.tokens),
                    _rate(line.total_nano, line.tokens),
                    usd(line.total_nano),
                )
            )
        return Table(
            title="Dollars per million tokens",
            columns=(
                *("configuration", "requests", "tokens: input / cached / output", "input", "cached", "output"),
                *("all, in use", "all, with idle", "bill"),
            ),
            rows=tuple(rows),
            note="Input is what was computed; cached input pays rent for its room in memory since its last use. In "
            "use: what requests were charged of the engine's time; remote: what was reported, else the price. With "
            "idle: the whole bill.",
        )

    def provisions(self) -> Table:
        """Show how much engine time there was, and how much of it steps were made."""
        rows = tuple(
            (
                self.names[own.configuration],
                f"{own.engines:,}",
                f"{own.starts:,}",
                span(own.total_ns),
                f"{own.utilization:.1%}",
                f"{own.busiest_hour:.1%}",
            )
            for own in self.found.provisions
        )
        return Table(
            title="Provisioned against computing",
            columns=("configuration", "engines", "starts", "provisioned", "utilization", "in the busiest hour"),
            rows=rows,
            note="Utilization is the time in which steps were made; how full they were is another matter.",
        )

    def times(self) -> Table:
        """Show what engines did with their time, and what that cost."""
        used = {line.configuration: line.used_nano for line in self.found.lines}
        rows = []
        for own in self.found.provisions:
            name, total = self.names[own.configuration], own.total_ns or 1
            for what, ns, nano in (
                ("for requests", own.requests_ns, used.get(own.configuration, 0)),
                ("recomputed", own.recomputed_ns, own.recomputed_nano),
                ("abandoned", own.abandoned_ns, own.abandoned_nano),
                ("loading", own.loading_ns, own.loading_nano),
                ("idle", own.idle_ns, own.idle_nano),
                ("cached, unused", own.cached_ns, own.cached_nano),
            ):
                money = "not known" if own.configuration.nano_per_hour is None else usd(nano)
                rows.append((name, what, span(ns), f"{ns / total:.1%}", money))
        return Table(
            title="Where engine time went",
            columns=("configuration", "what", "time", "of it", "cost"),
            rows=tuple(rows),
            note="Recomputed: after preemptions. Abandoned: for callers that had gone.",
        )

    def comparisons(self) -> Table:
        """Show from when on the machine is cheaper than a price."""
        rows = []
        for each in self.found.comparisons:
            reach = f"{each.utilization:.1%}" if each.utilization <= 1 else f"never ({each.utilization:,.1f} x busy)"
            rows.append(
                (
                    self.names[each.configuration],
                    each.reference,
                    usd(each.here_nano),
                    usd(each.elsewhere_nano),
                    f"{each.utilization_now:.1%}",
                    reach,
                    f"{each.tokens_per_month / 1e6:,.1f} M",
                    f"{each.tokens_per_s:,.0f} / {each.busy_tokens_per_s:,.0f}",
                )
            )
        return Table(
            title="Own machine against a price",
            columns=(
                *("configuration", "against", "bill here", "same tokens there", "utilization now"),
                *("cheaper here above", "tokens a month for that", "tokens/s needed / while busy"),
            ),
            rows=tuple(rows),
            note="At this mix of input, cached input and output. Engineers, spare machines and quality do not count.",
        )

    def latencies(self) -> Table:
        """Show where the time of slow requests was, beside those of the middle."""
        groups = [group for each in self.found.latencies for group in (each.middle, each.slowest)]
        heads = [f"{each.what}: {who}" for each in self.found.latencies for who in ("middle", "slowest 1 %")]
        rows = [
            ("requests", *(f"{group.requests:,}" for group in groups)),
            ("mean time", *(span(group.total_ns) for group in groups)),
        ]
        for index, part in enumerate(PARTS):
            if any(group.parts_ns[index] for group in groups):
                times = (group.parts_ns[index] for group in groups)
                rows.append((f"{part}: {_MEANING[part]}", *(span(ns) if ns else "–" for ns in times)))
        rows += [
            ("prompt tokens computed", *(f"{group.fresh_tokens:,.0f}" for group in groups)),
            ("prompt tokens from the cache", *(f"{group.cached_tokens:,.0f}" for group in groups)),
            ("tokens of the answer", *(f"{group.output_tokens:,.0f}" for group in groups)),
            ("preemptions", *(f"{group.preemptions:.2g}" for group in groups)),
            ("most frequent tenant", *(f"{g.tenant or '(none)'} {g.tenant_share:.0%}" for g in groups)),
        ]
        return Table(
            title="What makes slow requests slow",
            columns=("mean of each group", *heads),
            rows=tuple(rows) if groups else (),
            note="Answers that ended by themselves. The middle is the tenth around the median.",
        )

    def traffic(self) -> Table:
        """Show what the traffic is like."""
        found = self.found.traffic
        rows = list(_traffic_rows(self.found))
        return Table(
            title="Traffic",
            columns=("what", "how much"),
            rows=tuple(rows),
            note="" if found.has_digests else _NO_DIGESTS,
        )

    def tenants(self) -> Table:
        """Show who uses how much."""
        shares = self.found.traffic.tenants
        tokens = sum(each.tokens for each in shares) or 1
        busy = sum(each.engine_ns for each in shares) or 1
        rows = [
            (
                each.tenant or "(none)",
                f"{each.requests:,}",
                f"{each.tokens:,}",
                f"{each.tokens / tokens:.1%}",
                f"{each.engine_ns / busy:.1%}",
            )
            for each in shares[:10]
        ]
        if len(shares) > 10:
            rest = shares[10:]
            others = sum(each.tokens for each in rest)
            rows.append(
                (
                    f"{len(rest):,} others",
                    f"{sum(each.requests for each in rest):,}",
                    f"{others:,}",
                    f"{others / tokens:.1%}",
                    f"{sum(each.engine_ns for each in rest) / busy:.1%}",
                )
            )
        return Table(
            title="Tenants",
            columns=("tenant", "requests", "tokens", "of all tokens", "of all engine time"),
            rows=tuple(rows),
        )


_NO_DIGESTS = "Repeats and common beginnings are not known: gateway.digests was off."


def _traffic_rows(audit: StackAudit) -> Iterator[tuple[str, str]]:
    found = audit.traffic
    num = found.requests or 1
    yield "streamed", f"{found.streamed / num:.0%} of requests"
    for name, lengths in (("prompt", found.input), ("answer", found.output)):
        yield (
            f"{name}, tokens",
            f"p50 {lengths.p50:,.0f}, p90 {lengths.p90:,.0f}, p99 {lengths.p99:,.0f}, longest {lengths.longest:,}",
        )
    yield "prompt tokens from the cache", _share(found.cached_tokens, found.input_tokens)
    for prefix in found.prefixes[:3]:
        yield (
            f"common beginning, {prefix.model}{f', {prefix.tenant}' if prefix.tenant else ''}",
            f"first {prefix.length:,} tokens in {_share(prefix.requests, prefix.of_requests)} of prompts, "
            f"{prefix.missed_tokens:,} tokens computed again",
        )
    if found.has_digests:
        again = found.repeats
        yield (
            "exact repeats",
            f"{_share(again.requests, again.of_requests)} of requests, {again.exact:,} of them decoded greedily",
        )
    half = _half(found.tenants)
    yield "half of all tokens are of", f"{half:,} of {len(found.tenants):,} tenants"
    yield "ends", ", ".join(f"{name} {_share(count, found.requests)}" for name, count in found.outcomes)
    busiest, count = Counter(dict(enumerate(found.by_hour))).most_common(1)[0]
    yield "busiest hour of the day", f"{busiest:02d}:00 UTC, {_share(count, found.requests)} of requests"


def _half(tenants: Iterable[TenantShare]) -> int:
    """Return how many tenants have half of all tokens."""
    tokens = sorted((each.tokens for each in tenants), reverse=True)
    reached, half = 0, sum(tokens) / 2
    for number, own in enumerate(tokens, 1):
        reached += own
        if reached >= half:
            return number
    return len(tokens)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0 %"


def _rate(nano: int, tokens: int) -> str:
    rate = per_mtok(nano, tokens)
    return "–" if rate is None else f"{rate:,.4f}" if rate < 1 else f"{rate:,.2f}"


def _names(configurations: Iterable[Configuration]) -> dict[Configuration, str]:
    """Name configurations by their model, numbered where there are several of one."""
    names: dict[Configuration, str] = {}
    count: Counter[str] = Counter()
    for each in configurations:
        if each not in names:
            base = f"{each.model} (remote)" if each.is_remote else each.model
            count[base] += 1
            names[each] = base if count[base] == 1 else f"{base} #{count[base]}"
    return names
