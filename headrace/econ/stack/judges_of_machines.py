"""Improvements of what is provisioned: idle machines, their size, where models run, how weights and KV are kept.

Pure functions of the evidence, called by `improvements`. Each states the formula with its inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.econ.stack.bill import CostLine
from headrace.econ.stack.provision import LONG_IDLE_NS
from headrace.econ.stack.rows import RequestRow, StepFit
from headrace.econ.stack.savings import DAY_NS, HOUR_NS, Evidence, Improvement, NotJudged, span, usd

_MOST_BUSY_TO_HALVE = 0.35  # half of the machine is then busy 70 % of the busiest hour
_WORTH_MOVING = 0.9  # elsewhere has to be a tenth cheaper
_IDLE_TO_FILL = 0.7
_WORTH_OF_RECOMPUTE = 0.01
_MOST_MISFIT = 1.3


def idle_machine(evidence: Evidence) -> Iterator[Improvement | NotJudged]:
    """Turn a machine off while nobody asks for long."""
    if evidence.provisions and evidence.covered_ns < LONG_IDLE_NS:
        yield NotJudged(
            "scale to zero when idle",
            f"the records cover {span(evidence.covered_ns)}; stretches of 15 minutes without a request are looked for",
        )
        return
    for line, own in evidence.local():
        rate = line.configuration.nano_per_hour
        if rate is None or not own.long_idles:
            continue
        reload_ns = own.loading_ns // own.starts if own.starts else 0
        saved_ns = max(own.long_idle_ns - own.long_idles * reload_ns, 0)
        nano = evidence.per_day(saved_ns * rate / HOUR_NS)
        yield Improvement(
            title=f"scale {line.configuration.model} to zero when idle",
            do="stop the machine after 15 minutes without a request and start it with the next one",
            evidence=f"{own.long_idles:,} stretches of at least 15 minutes without a step, {span(own.long_idle_ns)} "
            f"in all, of {span(own.total_ns)} provisioned",
            formula=f"({span(own.long_idle_ns)} idle − {own.long_idles:,} starts · {span(reload_ns)} loading) · "
            f"{usd(rate)}/h / {evidence.days:.3g} days",
            nano_per_day=nano,
            is_cash=True,
            effort_h=8.0,
            wrong_if=f"the first request after a pause may not wait {span(reload_ns)}, or the machine is paid for by "
            "the month whether it runs or not",
        )


def smaller_machine(evidence: Evidence) -> Iterator[Improvement | NotJudged]:
    """Halve a machine that is never half busy."""
    if evidence.provisions and evidence.covered_ns < DAY_NS:
        yield NotJudged(
            "a smaller machine",
            f"the records cover {span(evidence.covered_ns)}; the busiest hour of a whole day counts",
        )
        return
    for line, own in evidence.local():
        if line.configuration.nano_per_hour is None or own.busiest_hour > _MOST_BUSY_TO_HALVE:
            continue
        yield Improvement(
            title=f"a machine of half the size for {line.configuration.model}",
            do="take half of the cores or the next smaller accelerator that holds the weights",
            evidence=f"steps were made in {own.busiest_hour:.0%} of the busiest hour, in {own.utilization:.1%} of all "
            "time",
            formula=f"{usd(line.total_nano)} bill · 1/2 / {evidence.days:.3g} days",
            nano_per_day=evidence.per_day(line.total_nano / 2),
            is_cash=True,
            effort_h=4.0,
            wrong_if="half of the machine is less than half as fast, so that answers miss their deadlines, or its "
            "price is more than half: measure with `headrace bench steps` there and `headrace sim` on this traffic",
        )


def elsewhere(evidence: Evidence) -> Iterator[Improvement | NotJudged]:
    """Let somebody else serve a model, where that is cheaper at this load."""
    local = evidence.local()
    if local and not evidence.comparisons:
        yield NotJudged(
            "a remote upstream instead of a machine",
            "no price to compare with; give one with --against, such as --against 0.10/0.40",
        )
    for line, own in local:
        offers = [each for each in evidence.comparisons if each.configuration == line.configuration]
        best = min(offers, key=lambda each: each.elsewhere_nano, default=None)
        if best is None or best.elsewhere_nano > _WORTH_MOVING * best.here_nano:
            continue
        needed = (
            "even a machine that is always busy would be dearer"
            if best.utilization > 1
            else f"the machine is cheaper above {best.utilization:.1%} utilization"
        )
        yield Improvement(
            title=f"serve {line.configuration.model} elsewhere: {best.reference}",
            do="add it as an upstream, route the model there, stop the machine",
            evidence=f"at {own.utilization:.1%} utilization the machine costs {usd(best.here_nano)}, the same tokens "
            f"there {usd(best.elsewhere_nano)}; {needed}",
            formula=f"({usd(best.here_nano)} bill − {usd(best.elsewhere_nano)} for the same tokens) / "
            f"{evidence.days:.3g} days",
            nano_per_day=evidence.per_day(best.here_nano - best.elsewhere_nano),
            is_cash=True,
            effort_h=8.0,
            wrong_if="its answers are worse, the data may not leave, it charges cached input in full, or the load "
            "grows past the break-even",
        )


def bring_home(evidence: Evidence) -> Iterator[Improvement | NotJudged]:
    """Let an idle engine answer what a remote upstream is paid for."""
    engines = [(line, own) for line, own in evidence.local() if line.output_tokens and line.fresh_tokens]
    for remote in evidence.lines:
        if not remote.configuration.is_remote or not remote.used_nano:
            continue
        for line, own in engines:
            needed_ns = _time_for(remote, line, evidence.requests)
            if needed_ns > _IDLE_TO_FILL * own.idle_ns:
                continue
            yield Improvement(
                title=f"answer {remote.configuration.model} with {line.configuration.model}",
                do="route it to the engine that is running anyway, after its answers passed a quality gate",
                evidence=f"{remote.configuration.model} was paid {usd(remote.used_nano)}; its tokens would take "
                f"{span(needed_ns)} of {span(own.idle_ns)} that the engine was idle",
                formula=f"{usd(remote.used_nano)} paid / {evidence.days:.3g} days; the engine is paid for already",
                nano_per_day=evidence.per_day(remote.used_nano),
                is_cash=True,
                effort_h=24.0,
                wrong_if=f"{line.configuration.model} answers these requests worse, or both are busy in the same hours",
            )
            break


def _time_for(remote: CostLine, line: CostLine, rows: list[RequestRow]) -> float:
    """Return the engine time that a remote line's tokens would take, at what this line's tokens took."""
    own = [row for row in rows if row.model == line.configuration.model and row.engine is not None]
    prompt_ns = sum(row.prompt_ns for row in own)
    answer_ns = line.engine_ns - prompt_ns - sum(row.rent_ns for row in own)
    fresh = remote.fresh_tokens + remote.cached_tokens
    return fresh * prompt_ns / line.fresh_tokens + remote.output_tokens * answer_ns / line.output_tokens


def smaller_weights(evidence: Evidence) -> Iterator[Improvement | NotJudged]:
    """Keep weights in fewer bits, by measured step times of both."""
    if evidence.fits is None:
        wide = [line for line, _ in evidence.local() if line.configuration.bits > 5]
        if wide:
            yield NotJudged(
                f"weights of {wide[0].configuration.model} in fewer bits",
                "no step times of another way of keeping them; measure both with `headrace bench steps --out FILE` "
                "and give --fits NOW.json OTHER.json",
            )
        return
    now, other = evidence.fits
    for line, own in evidence.local():
        rate = line.configuration.nano_per_hour
        rows = [row for row in evidence.requests if row.model == line.configuration.model and row.engine is not None]
        if rate is None or not rows or not own.requests_ns:
            continue
        explained_s, rest_s = _work(rows, now), _work(rows, other)
        if explained_s > _MOST_MISFIT * own.requests_ns / 1e9:
            yield NotJudged(
                f"step times of '{other.source}' for {line.configuration.model}",
                f"'{now.source}' would need {explained_s:,.3g} s for what took {own.requests_ns / 1e9:,.3g} s: it was "
                "not measured on this engine",
            )
            continue
        steps = max(own.requests_ns / 1e9 - explained_s, 0.0) / now.shared if now.shared else 0.0
        before_s, after_s = explained_s + steps * now.shared, rest_s + steps * other.shared
        if after_s >= 0.98 * before_s:
            continue
        share = 1 - after_s / before_s
        yield Improvement(
            title=f"step times of '{other.source}' for {line.configuration.model}",
            do="serve it in the configuration that the second file of --fits was measured with",
            evidence=f"fitted step times say {after_s:,.3g} s instead of {before_s:,.3g} s for these requests, "
            f"{share:.0%} less, in about {steps:,.0f} steps",
            formula=f"{usd(line.used_nano)} for requests · {share:.3f} / {evidence.days:.3g} days",
            nano_per_day=evidence.per_day(line.used_nano * share),
            is_cash=False,
            effort_h=2.0,
            wrong_if="the answers get worse than they may: `headrace eval kl` says how far they move",
        )


def _work(rows: list[RequestRow], fit: StepFit) -> float:
    """Return the seconds that requests need beside what all share, by one fit."""
    total = 0.0
    for row in rows:
        context = row.cache_read + row.fresh
        total += row.fresh * fit.per_token + row.fresh * (row.cache_read + row.fresh / 2) * fit.per_pair
        total += row.output * fit.per_row + row.output * (context + row.output / 2) * fit.per_read
    return total


def smaller_kv(evidence: Evidence) -> Iterator[Improvement | NotJudged]:
    """Keep keys and values in eight bits, where room for them was short."""
    for line, own in evidence.local():
        wasted = own.recomputed_ns / own.busy_ns if own.busy_ns else 0.0
        if line.configuration.kv_dtype == "int8" or wasted < _WORTH_OF_RECOMPUTE or not own.recomputed_nano:
            continue
        yield Improvement(
            title=f"int8 keys and values for {line.configuration.model}",
            do="set engine.kv_dtype = 'int8': the same memory holds nearly twice the tokens",
            evidence=f"{wasted:.1%} of busy time went into computing again what preemptions had thrown away",
            formula=f"at most {usd(own.recomputed_nano)} recomputed / {evidence.days:.3g} days",
            nano_per_day=evidence.per_day(own.recomputed_nano),
            is_cash=False,
            effort_h=1.0,
            wrong_if="preemptions go on with twice the room, or `headrace eval kl` finds the answers changed too much",
        )
