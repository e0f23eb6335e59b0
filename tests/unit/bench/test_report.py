"""Pages that people read: what stands where, and that nothing needs its colour to be understood."""

from __future__ import annotations

import re

from headrace.bench.figures import Stack, columns, stacks
from headrace.bench.report import Bar, Chart, Table, render_chart, render_page, render_table


def bar(value: float, *, low: float | None = None, aside: str = "") -> Bar:
    return Bar(
        label="b",
        value=value,
        low=value if low is None else low,
        high=value,
        text=f"{value} s",
        aside=aside,
        is_ours=True,
    )


def test_only_columns_of_numbers_are_set_to_the_right() -> None:
    rows = (("a", "1.5 s", "as stored", "–"), ("b", "$2", "Q4_0", "3"))
    html = render_table(Table(title="t", columns=("engine", "time", "weights", "n"), rows=rows))
    assert [("class=n" in cell) for cell in re.findall(r"<th[^>]*>", html)[1:]] == [False, True, False, True]
    assert html.count("<td class=n>") == 4


def test_a_chart_says_what_is_better_and_speaks_of_repeats_only_where_they_differ() -> None:
    one = render_chart(Chart(title="c", unit="seconds", bars=(bar(2.0),), is_lower_better=True))
    assert "Seconds, lower is better." in one
    assert "spread" not in one
    several = render_chart(Chart(title="c", unit="seconds", bars=(bar(2.0, low=1.0, aside="(KL 0.7)"),)))
    assert "higher is better; the line spans the repeats" in several
    assert 'class="spread" style="left:50.00%;width:50.00%"' in several
    assert "(KL 0.7)" in several


def test_where_we_lose_stands_between_charts_and_tables_and_what_is_empty_is_left_out() -> None:
    chart, table = (
        Chart(title="chart", unit="u", bars=(bar(1.0),)),
        Table(title="table", columns=("a",), rows=(("x",),)),
    )
    empty = Table(title="nothing", columns=("a",), rows=())
    page = render_page(
        "t", [("Date", "today")], [table, empty, chart, Chart(title="void", unit="u", bars=())], ["lost"]
    )
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["chart", "Where we lose", "table"]


def test_a_legend_has_the_share_of_every_part() -> None:
    parts = (("input", 2.0), ("output", 1.0), ("idle", 0.001), ("never", 0.0))
    html = stacks("s", [Stack(label="m", parts=parts, text="3"), Stack(label="n", parts=(("output", 1.0),), text="1")])
    legend = re.findall(r"</i>(\w+)<b> (.*?)</b>", html)
    assert legend == [("input", "67% · 0%"), ("output", "33% · 100%"), ("idle", "&lt;1% · 0%")]


def test_of_many_columns_the_highest_is_named() -> None:
    html = columns("c", [("", float(hour)) for hour in range(24)])
    assert re.findall(r"<text[^>]*>(\d+)</text>", html) == ["23"]
