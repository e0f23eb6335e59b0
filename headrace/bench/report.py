"""Benchmark reports as one self-contained HTML page: what was measured, how, charts, where we lose, tables.

Pure functions from values to text: no scripts, no external assets, readable in light and dark, on a phone and on paper.
Every value is escaped. Charts are bars from zero with each number in a column of its own, so that a chart can be read
without its colours and nothing overlaps; wide tables scroll by themselves, never the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest

_STYLE = """
:root { color-scheme: light dark; --ink:#1c2530; --soft:#5a6675; --line:#d8dee6; --paper:#fff; --ours:#0b6e99;
  --theirs:#9aa8b7; --warn:#a4480b }
@media (prefers-color-scheme: dark) { :root { --ink:#e6ebf1; --soft:#9fb0c0; --line:#334150; --paper:#141a21;
  --ours:#4fb3d9; --theirs:#64748b; --warn:#f0a35e } }
* { box-sizing: border-box; print-color-adjust: exact }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
p.note, figcaption, dl { color: var(--soft); font-size: .9rem } figure { margin: 1rem 0; break-inside: avoid }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem } dt { font-weight: 600 }
dd { margin: 0; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
.n { text-align: right } td.n { white-space: nowrap } tr.ours td { font-weight: 600 }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; grid-auto-flow: dense; gap: .5rem .9rem;
  align-items: center; font-size: .9rem; margin: 0 0 .5rem } .bars b { grid-column: 1; font-weight: 400;
  text-align: right } .bars .number { grid-column: 3; font-variant-numeric: tabular-nums; text-align: right }
.bars .track { grid-column: 2 } .bars b.ours { font-weight: 600 }
.track { position: relative; height: 1.4rem } .track i { position: absolute; display: block }
.fill { left: 0; top: 0; bottom: 0; min-width: 1px; border-radius: 2px; background: var(--theirs) }
.ours + .number + .track .fill { background: var(--ours) }
.spread { top: .35rem; bottom: .35rem; border: solid var(--ink); border-width: 0 2px }
.spread::after { content: ""; position: absolute; top: calc(50% - 1px); left: 0; right: 0; height: 2px;
  background: var(--ink) }
.aside { color: var(--soft); font-size: .9em } ul.losses li { color: var(--warn) }
code { font-size: .85em; overflow-wrap: anywhere }
@media (max-width: 36rem) { body { margin: 1.25rem auto } .bars { grid-template-columns: 1fr max-content; gap: 0 .9rem }
  .bars b { text-align: left } .bars .number { grid-column: 2 }
  .bars .track { grid-column: 1 / -1; height: 1rem; margin-bottom: .5rem } }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: a value with the spread over repeats (low, high); `aside` is what a reader must know of it."""

    label: str
    value: float
    low: float
    high: float
    text: str
    is_ours: bool = False
    aside: str = ""


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
    """Return the chart as a figure. Bars start at zero; where repeats differ, a line spans them."""
    top = max((bar.high for bar in chart.bars), default=0.0) or 1.0
    parts = []
    for bar in chart.bars:
        low, high = 100 * bar.low / top, 100 * bar.high / top
        spread = f'<i class="spread" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>' if high > low else ""
        aside = f' <span class="aside">{escape(bar.aside)}</span>' if bar.aside else ""
        kind = ' class="ours"' if bar.is_ours else ""
        # The number comes before the bar, so that on a phone it stands beside the label and the bar below both.
        parts.append(
            f'<b{kind}>{escape(bar.label)}{aside}</b><span class="number">{escape(bar.text)}</span><span class="track">'
            f'<i class="fill" style="width:{100 * bar.value / top:.2f}%"></i>{spread}</span>'
        )
    better = "lower is better" if chart.is_lower_better else "higher is better"
    spans = "; the line spans the repeats" if any(bar.high > bar.low for bar in chart.bars) else ""
    caption = f"{chart.unit[:1].upper()}{chart.unit[1:]}, {better}{spans}. {chart.caption}".strip()
    return (
        f'<h2>{escape(chart.title)}</h2><figure><div class="bars">{"".join(parts)}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def render_table(table: Table) -> str:
    """Return the table as HTML; columns of numbers are set to the right."""
    kinds = [" class=n" if all(map(_is_number, cells)) else "" for cells in zip_longest(*table.rows, fillvalue="")]
    kinds += [""] * (len(table.columns) - len(kinds))
    head = "".join(f"<th{kind}>{escape(column)}</th>" for kind, column in zip(kinds, table.columns, strict=True))
    body = "".join(
        f"<tr{' class=ours' if row[0] in table.ours else ''}>"
        + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def render_page(
    title: str,
    conditions: Sequence[tuple[str, str]],
    sections: Sequence[Chart | Table],
    losses: Sequence[str] = (),
) -> str:
    """Return the whole page: charts, then what is lost, then tables that have rows.

    conditions  (name, value) pairs: machine, model, commit, date, commands
    """
    charts = "".join(render_chart(section) for section in sections if isinstance(section, Chart) and section.bars)
    tables = "".join(render_table(section) for section in sections if isinstance(section, Table) and section.rows)
    lost = "".join(f"<li>{escape(line)}</li>" for line in losses)
    where = f"<h2>Where we lose</h2><ul class=losses>{lost}</ul>" if lost else ""
    return render_document(title, conditions, charts + where + tables)


def render_document(title: str, conditions: Sequence[tuple[str, str]], body: str, style: str = "") -> str:
    """Return a page around HTML that is made already; `style` is added to the pages' own."""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in conditions)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{_STYLE}{style}</style>'
        f"</head><body><h1>{escape(title)}</h1><dl>{facts}</dl>{body}</body></html>\n"
    )


def _is_number(cell: str) -> bool:
    """Whether a cell is a number with its unit, or stands for one that is not known."""
    return cell[:1].isdigit() or cell[:1] in ("", "$", "–", "-", "+", "<", "~") or cell == "not known"
