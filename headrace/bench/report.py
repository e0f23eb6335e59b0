"""Benchmark reports as one self-contained HTML page: what was measured, how, charts, tables, where we lose.

Pure functions from values to text: no scripts, no external assets, readable in light and dark and on paper. Every value
is escaped. Charts are horizontal bars with the number beside the bar, so a chart can be read without its colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_BAR_HEIGHT, _BAR_GAP, _LABEL_WIDTH, _PLOT_WIDTH, _VALUE_WIDTH = 22, 8, 210, 420, 170

_STYLE = """
:root { --ink:#1c2530; --soft:#5a6675; --line:#d8dee6; --paper:#fff; --ours:#0b6e99; --theirs:#9aa8b7; --warn:#a4480b; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6ebf1; --soft:#9fb0c0; --line:#334150; --paper:#141a21;
  --ours:#4fb3d9; --theirs:#64748b; --warn:#f0a35e; } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.6rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
p.note, figcaption, dl { color: var(--soft); font-size: .9rem } figure { margin: 1rem 0; overflow-x: auto }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem } dt { font-weight: 600 } dd { margin: 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left } tr.ours td { font-weight: 600 }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink) } svg .value { font-variant-numeric: tabular-nums }
.bar { fill: var(--theirs) } .bar.ours { fill: var(--ours) } .spread { stroke: var(--ink); stroke-width: 1.5 }
ul.losses li { color: var(--warn) } code { font-size: .85em; overflow-wrap: anywhere }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: a value with the spread over repeats (low, high)."""

    label: str
    value: float
    low: float
    high: float
    text: str
    is_ours: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Bars of one quantity; `is_lower_better` is said in the caption."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    caption: str = ""
    is_lower_better: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of already formatted cells; rows whose first cell is in `ours` are set bold."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    ours: frozenset[str] = frozenset()


def render_chart(chart: Chart) -> str:
    """Return the chart as an SVG figure. Bars start at zero."""
    top = max((bar.high for bar in chart.bars), default=1.0) or 1.0
    height = len(chart.bars) * (_BAR_HEIGHT + _BAR_GAP) + _BAR_GAP
    width = _LABEL_WIDTH + _PLOT_WIDTH + _VALUE_WIDTH
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(chart.title)}">'
    ]
    for i, bar in enumerate(chart.bars):
        y = _BAR_GAP + i * (_BAR_HEIGHT + _BAR_GAP)
        middle = y + _BAR_HEIGHT / 2
        length = _PLOT_WIDTH * bar.value / top
        low, high = (_LABEL_WIDTH + _PLOT_WIDTH * v / top for v in (bar.low, bar.high))
        kind = "bar ours" if bar.is_ours else "bar"
        parts += [
            f'<text x="{_LABEL_WIDTH - 10}" y="{middle + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{kind}" x="{_LABEL_WIDTH}" y="{y}" width="{length:.1f}" height="{_BAR_HEIGHT}" rx="2"/>',
            f'<line class="spread" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>',
            f'<text class="value" x="{max(_LABEL_WIDTH + length, high) + 8:.1f}" y="{middle + 4:.1f}">'
            f"{escape(bar.text)}</text>",
        ]
    better = "lower is better" if chart.is_lower_better else "higher is better"
    caption = f"{chart.unit}, {better}; the line spans the repeats. {chart.caption}".strip()
    figure = f"<figure>{''.join(parts)}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    return f"<h2>{escape(chart.title)}</h2>{figure}"


def render_table(table: Table) -> str:
    """Return the table as HTML."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(
        f"<tr{' class=ours' if row[0] in table.ours else ''}>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h2>{escape(table.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def render_page(
    title: str,
    conditions: Sequence[tuple[str, str]],
    sections: Sequence[Chart | Table],
    losses: Sequence[str] = (),
) -> str:
    """Return the whole page. `conditions` are (name, value) pairs: machine, model, commit, date, commands."""
    body = "".join(render_chart(s) if isinstance(s, Chart) else render_table(s) for s in sections)
    lost = "".join(f"<li>{escape(line)}</li>" for line in losses)
    where = f"<h2>Where we lose</h2><ul class=losses>{lost}</ul>" if lost else ""
    return render_document(title, conditions, body + where)


def render_document(title: str, conditions: Sequence[tuple[str, str]], body: str, style: str = "") -> str:
    """Return a page around HTML that is made already; `style` is added to the pages' own."""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in conditions)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>'
        f"<h1>{escape(title)}</h1><dl>{facts}</dl>{body}</body></html>\n"
    )
