"""The audit of a stack as one page: figures first, then the tables that the terminal shows.

Owns the order and the figures' values; words and tables are `cli.stack_words`'. No scripts, nothing from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape

import headrace
from headrace.bench.figures import FIGURE_STYLE, Stack, columns, curve, stacks, together
from headrace.bench.report import render_document, render_table
from headrace.cli.stack_words import SHOWN, Words
from headrace.econ.stack.bill import per_mtok
from headrace.econ.stack.break_even import usd_per_mtok
from headrace.econ.stack.rows import PARTS
from headrace.econ.stack.savings import Improvement, span, usd

# The same thing has the same colour in every figure.
_COLOURS = {
    **{"input": 0, "cached input": 7, "output": 1, "not divided": 6, "for requests": 0},
    **{"recomputed": 6, "abandoned": 3, "loading": 2, "idle": 5, "cached, unused": 8},
}
_PART_COLOURS = {name: place for place, name in enumerate(PARTS)}
_STYLE = """
ol.todo > li { margin: 1rem 0 } ol.todo h3 { display: inline; font-size: 1rem } .saves { color: var(--ours);
  font-weight: 600 } ol.todo dl { margin: .3rem 0; grid-template-columns: 5rem 1fr } .lead { font-size: 1.05rem }
.wide table { min-width: 34rem }
"""


def stack_page(words: Words) -> str:
    """Return the whole page."""
    found = words.found
    lead = "".join(f'<p class="lead">{escape(sentence)}</p>' for sentence in words.headline())
    tables = (
        *(words.configurations(), words.costs(), words.provisions(), words.times(), words.comparisons()),
        *(words.latencies(), words.traffic(), words.tenants()),
    )
    shown = "".join(render_table(table) for table in tables if table.rows)
    days = " to ".join(
        f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d}" for ns in (found.since_ns, found.until_ns - 1)
    )
    conditions = [
        ("Period", f"{days}, UTC; records of {span(found.covered_ns)}"),
        ("Made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by headrace {headrace.__version__}, headrace audit stack"),
    ]
    body = lead + together(list(_figures(words))) + _improvements(words) + shown
    return render_document("What serving cost, and what would cost less", conditions, body, FIGURE_STYLE + _STYLE)


def _figures(words: Words) -> Iterator[str]:
    yield from _money(words)
    yield from _time(words)
    found = words.found.traffic
    by_hour = [(f"{hour:02d}", float(count)) for hour, count in enumerate(found.by_hour)]
    yield columns("Requests by hour of the day, UTC", by_hour, every=6)
    for name, lengths in (("Prompt", found.input), ("Answer", found.output)):
        counts = [(_bound(bound), float(count)) for bound, count in lengths.counts]
        yield columns(
            f"{name} length, tokens", counts, "Requests with at most so many tokens, and more than the one before."
        )
    ends = tuple((name, float(count)) for name, count in found.outcomes)
    input_parts = (
        ("from the cache", float(found.cached_tokens)),
        ("computed", float(found.input_tokens - found.cached_tokens)),
    )
    ways = (("streamed", float(found.streamed)), ("whole", float(found.requests - found.streamed)))
    yield stacks("How answers end", [Stack(label="requests", parts=ends, text=f"{found.requests:,}")], is_share=True)
    yield stacks(
        "Prompt tokens", [Stack(label="tokens", parts=input_parts, text=f"{found.input_tokens:,}")], is_share=True
    )
    yield stacks(
        "How answers are sent", [Stack(label="requests", parts=ways, text=f"{found.requests:,}")], is_share=True
    )


def _money(words: Words) -> Iterator[str]:
    bars = [
        Stack(
            label=words.names[line.configuration],
            parts=(
                ("input", line.fresh_nano / 1e9),
                ("cached input", line.cached_nano / 1e9),
                ("output", line.output_nano / 1e9),
                ("not divided", line.unsplit_nano / 1e9),
                ("recomputed", line.recomputed_nano / 1e9),
                ("abandoned", line.abandoned_nano / 1e9),
                ("loading", line.loading_nano / 1e9),
                ("idle", line.idle_nano / 1e9),
                ("cached, unused", max(line.resting_nano, 0) / 1e9),
            ),
            text=usd(line.total_nano),
        )
        for line in words.found.lines
        if line.total_nano
    ]
    if bars:
        yield stacks("The bill", bars, "Dollars of the period, to one scale.", colours=_COLOURS)
    for line in words.found.lines:
        own = next((each for each in words.found.provisions if each.configuration == line.configuration), None)
        rate = line.configuration.nano_per_hour
        if own is None or rate is None or not own.busy_ns or not line.tokens:
            continue
        speed = line.tokens / own.busy_ns * 1e9
        points = [(level / 100, usd_per_mtok(rate / 1e9, speed, level / 100)) for level in range(10, 101, 2)]
        marks = [
            (
                f"{each.reference}: {usd(each.elsewhere_nano / line.tokens * 1e6)}",
                each.elsewhere_nano / line.tokens / 1e3,
            )
            for each in words.found.comparisons
            if each.configuration == line.configuration
        ]
        here = per_mtok(line.total_nano, line.tokens)
        yield curve(
            f"{words.names[line.configuration]}: dollars per million tokens by utilization",
            points,
            marks[:3],
            None if here is None else (own.utilization, here),
            f"At this mix and {speed:,.0f} tokens/s while busy. Dashed: the same tokens at another price.",
        )


def _time(words: Words) -> Iterator[str]:
    lives = [
        Stack(
            label=words.names[own.configuration],
            parts=(
                ("for requests", float(own.requests_ns)),
                ("recomputed", float(own.recomputed_ns)),
                ("abandoned", float(own.abandoned_ns)),
                ("loading", float(own.loading_ns)),
                ("idle", float(own.idle_ns)),
                ("cached, unused", float(max(own.cached_ns, 0))),
            ),
            text=f"{own.utilization:.1%} of {span(own.total_ns)}",
        )
        for own in words.found.provisions
    ]
    if lives:
        yield stacks("Engine time", lives, "What was provisioned.", is_share=True, colours=_COLOURS)
    for each in words.found.latencies:
        bars = [
            Stack(label=name, parts=tuple(zip(PARTS, group.parts_ns, strict=True)), text=span(group.total_ns))
            for name, group in (("middle", each.middle), ("slowest 1 %", each.slowest))
        ]
        yield stacks(f"Time {each.what}", bars, "Mean of each group, to one scale.", colours=_PART_COLOURS)


def _improvements(words: Words) -> str:
    found = words.found
    items = "".join(f"<li>{_item(each)}</li>" for each in found.improvements[:SHOWN])
    listed = f'<ol class="todo">{items}</ol>' if items else "<p>No improvement has evidence in these records.</p>"
    caution = (
        '<p class="note">Savings overlap and do not add up. Freed engine time is money only when a smaller machine or '
        "other work follows.</p>"
        if items
        else ""
    )
    rest = "".join(f"<li>Not judged: {escape(each.title)}: {_coded(each.lacks)}.</li>" for each in found.not_judged)
    rest += "".join(f"<li>{escape(caveat)}</li>" for caveat in found.caveats)
    notes = f"<h2>What these records do not say</h2><ul>{rest}</ul>" if rest else ""
    return f"<h2>Cheapest improvements</h2>{listed}{caution}{notes}"


def _item(each: Improvement) -> str:
    worth = "a day less to pay" if each.is_cash else "a day of engine time freed"
    facts = (("Do", each.do), ("Evidence", each.evidence), ("Formula", each.formula), ("Wrong if", each.wrong_if))
    listed = "".join(f"<dt>{name}</dt><dd>{_coded(text)}</dd>" for name, text in facts)
    return (
        f'<h3>{escape(each.title)}</h3><br><span class="saves">{usd(each.nano_per_day)} {worth}</span>, about '
        f"{each.effort_h:g} h of work<dl>{listed}</dl>"
    )


def _coded(text: str) -> str:
    """Escape text; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _bound(bound: int) -> str:
    return f"{bound // 1024}k" if bound >= 1024 else str(bound)
