"""Small figures for reports: parts of a whole, columns, a curve. SVG, readable in light, dark, print and on a phone.

Pure functions from values to text, beside `bench.report`, whose page they go into. A figure is 440 units wide and
grows or shrinks with its place; the label stands above its bar, so that no width is lost to labels. Numbers are written
beside what they are about, and each part is named in the legend, so a figure can be read without its colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 440
_COLOURS = 9
_MOST_NAMED = 14  # columns that have room for their values; of more, the highest is named

FIGURE_STYLE = """
:root { --c0:#0b6e99; --c1:#d98e04; --c2:#3a8f5c; --c3:#b3446c; --c4:#7a6bb5; --c5:#7d8894;
  --c6:#c05b2c; --c7:#7fb7d0; --c8:#5d4a3c }
@media (prefers-color-scheme: dark) { :root { --c0:#4fb3d9; --c1:#f0b445; --c2:#67c08c; --c3:#e07ba0; --c4:#a99ae0;
  --c5:#8d99a6; --c6:#e58a5c; --c7:#27698a; --c8:#b59f8d } }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: .5rem 2rem }
.figures figure { margin: .5rem 0; overflow: visible } .figures svg { width: 100%; height: auto; max-width: 32rem }
.figures h3 { font-size: 1rem; margin: 0 0 .35rem } .wide { overflow-x: auto }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink) }
svg .soft { fill: var(--soft); font-size: 12px } svg .axis { stroke: var(--line) } svg .curve { fill: none;
  stroke: var(--c0); stroke-width: 2 } svg .mark { stroke: var(--c1); stroke-width: 1.5; stroke-dasharray: 4 3 }
svg .dot { fill: var(--c0) } .legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem;
  color: var(--soft) } .legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px;
  margin-right: .35rem } .legend b { font-weight: 600; font-variant-numeric: tabular-nums }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One bar of parts: (name, value); `text` is the whole, as written."""

    label: str
    parts: tuple[tuple[str, float], ...]
    text: str


def stacks(
    title: str,
    bars: Sequence[Stack],
    caption: str = "",
    *,
    is_share: bool = False,
    colours: Mapping[str, int] | None = None,
) -> str:
    """Draw bars of parts, from zero, to one scale, or each to its own whole; parts without a value are left out.

    colours  of the parts that have the same in every figure; others get theirs by place
    """
    chosen = colours or {}
    names = [name for name in dict.fromkeys(n for bar in bars for n, _ in bar.parts) if _sum(bars, name) > 0]
    top = max((sum(value for _, value in bar.parts) for bar in bars), default=0.0)
    drawn = []
    for number, bar in enumerate(bars):
        y, x = number * 46, 0.0
        whole = sum(value for _, value in bar.parts) if is_share else top
        drawn.append(
            f'<text x="0" y="{y + 13}">{escape(bar.label)}</text>'
            f'<text class="soft" x="{_WIDTH}" y="{y + 13}" text-anchor="end">{escape(bar.text)}</text>'
        )
        for name, value in bar.parts:
            if name not in names or not whole:
                continue
            width = _WIDTH * value / whole
            drawn.append(
                f'<rect x="{x:.1f}" y="{y + 19}" width="{max(width, 0):.1f}" height="16" '
                f'fill="var(--c{chosen.get(name, names.index(name)) % _COLOURS})"><title>{escape(name)}</title></rect>'
            )
            x += width
    legend = "".join(
        f'<span><i style="background:var(--c{chosen.get(name, place) % _COLOURS})"></i>{escape(name)}'
        f"<b>{escape(_shares(bars, name))}</b></span>"
        for place, name in enumerate(names)
    )
    return _figure(title, drawn, len(bars) * 46, caption, f'<div class="legend">{legend}</div>')


def columns(title: str, values: Sequence[tuple[str, float]], caption: str = "", *, every: int = 1) -> str:
    """Draw one column for each (label, value), with its value above where there is room, and each `every`-th label."""
    top = max((value for _, value in values), default=0.0) or 1.0
    step = _WIDTH / max(len(values), 1)
    drawn = [f'<line class="axis" x1="0" x2="{_WIDTH}" y1="122" y2="122"/>']
    for number, (label, value) in enumerate(values):
        x, height = number * step, 104 * value / top
        drawn.append(
            f'<rect x="{x + step * 0.1:.1f}" y="{122 - height:.1f}" width="{step * 0.8:.1f}" height="{height:.1f}" '
            f'fill="var(--c0)"><title>{escape(label)}: {value:,.0f}</title></rect>'
        )
        if value and (len(values) <= _MOST_NAMED or value == top):
            drawn.append(_middle(x + step / 2, 117 - height, f"{value:,.0f}"))
        if number % every == 0:
            drawn.append(_middle(x + step / 2, 138, label))
    return _figure(title, drawn, 144, caption)


def curve(
    title: str,
    points: Sequence[tuple[float, float]],
    marks: Sequence[tuple[str, float]],
    now: tuple[float, float] | None,
    caption: str = "",
) -> str:
    """Draw y over x, both from zero to 1 and to the top; `marks` are levels of y, `now` a point with its numbers."""
    shown = [value for _, value in points] + [value for _, value in marks]
    top = max(shown, default=1.0) * 1.05 or 1.0
    if now is not None and now[1] <= 3 * top:
        top = max(top, now[1] * 1.1)

    def place(x: float, y: float) -> tuple[float, float]:
        return 8 + (_WIDTH - 16) * x, 16 + 150 * (1 - min(y / top, 1.0))

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    drawn = [
        f'<line class="axis" x1="8" x2="{_WIDTH - 8}" y1="166" y2="166"/>',
        f'<polyline class="curve" points="{path}"/>',
    ]
    for level in (top / 4, top / 2, top * 3 / 4):
        y = place(0, level)[1]
        drawn.append(f'<line class="axis" x1="8" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text class="soft" x="{_WIDTH - 8}" y="{y - 4:.1f}" text-anchor="end">${level:,.2g}</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        drawn.append(
            f'<text class="soft" x="{place(share, 0)[0]:.1f}" y="182" text-anchor="{anchor}">{share:.0%}</text>'
        )
    for name, level in marks:
        y = place(0, level)[1]
        drawn.append(f'<line class="mark" x1="8" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        # Below the line at the left end: the curve is above it there, and the point's own words are above the point.
        drawn.append(f'<text class="soft" x="8" y="{y + 14:.1f}">{escape(name)}</text>')
    if now is not None:
        x, y = place(*now)
        over = ", off the chart" if now[1] > top else ""
        anchor, side = ("start", 8) if now[0] < 0.6 else ("end", min(0, _WIDTH - 60 - x))  # beside the levels' names
        rise = 8 if now[0] < 0.6 else 28  # above the curve on the left of the point
        drawn.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        drawn.append(
            f'<text x="{x + side:.1f}" y="{y - rise:.1f}" text-anchor="{anchor}">now: ${now[1]:,.3g} at '
            f"{now[0]:.1%}{over}</text>"
        )
    return _figure(title, drawn, 188, caption)


def together(figures: Sequence[str]) -> str:
    """Return figures side by side where there is room."""
    return f'<div class="figures">{"".join(figures)}</div>'


def _figure(title: str, drawn: Sequence[str], height: int, caption: str, after: str = "") -> str:
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><h3>{escape(title)}</h3><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(drawn)}</svg>{after}{note}</figure>'
    )


def _middle(x: float, y: float, text: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _shares(bars: Sequence[Stack], name: str) -> str:
    """Say which share of each bar a part is, in the bars' order; of more bars than fit into a legend, nothing."""
    if len(bars) > 3:
        return ""
    wholes = (sum(value for _, value in bar.parts) or 1.0 for bar in bars)
    shares = [_percent(_sum((bar,), name) / whole) for bar, whole in zip(bars, wholes, strict=True)]
    return f" {' · '.join(shares)}"


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _sum(bars: Sequence[Stack], name: str) -> float:
    return sum(value for bar in bars for part, value in bar.parts if part == name)
