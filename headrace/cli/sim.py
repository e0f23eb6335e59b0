"""`headrace sim TRACE`: recorded arrivals through the real engine on a virtual clock.

Owns how a simulation is asked for and shown. Settings are those of a server, so a server's configuration file can be
tried on a trace as it stands; what follows from the backend is as on the one whose step times are used. Sizes come from
--kv-tokens or, in parts of the trace's distinct tokens, from --shares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.table import Table

import headrace
from headrace.app.plan import async_scheduling
from headrace.app.step_sizes import chunk_grows, chunk_tokens, step_sizes
from headrace.bench.report import Bar, Chart, render_page
from headrace.bench.report import Table as HtmlTable
from headrace.cli.configured import settings_from
from headrace.cli.tables import print_table
from headrace.core.errors import ConfigError
from headrace.core.request import Reach
from headrace.core.settings import EngineSettings, PrefixPolicy, Settings
from headrace.sched import SchedulerLimits
from headrace.sim import SimReport, SimShape, StepTimes, Trace, read_step_times, read_trace, simulate
from headrace.sim.trace import TRACE_BLOCK

_CONTEXT = 131_072
_NOTE = (
    "Cache: the KV pool, as a part of the trace's distinct tokens. Of unlimited: hits over those of a cache without a "
    "limit that sees whole trace blocks in order of arrival; an engine with smaller blocks can find more."
)
_COLUMNS = (
    "cache",
    "policy",
    "hit rate",
    "of unlimited",
    "TTFT p50 / p99",
    "ITL p50 / p99",
    "good",
    "refused",
    "preempted",
)


def run(args: argparse.Namespace) -> int:
    """Simulate every combination of size and policy."""
    settings = settings_from(args)
    trace = read_trace(args.trace).first(args.requests).faster(args.rate)
    times = read_step_times(args.step_times)
    console = Console(stderr=True)
    reports: list[SimReport] = []
    for num_blocks, share in _sizes(args, settings, trace):
        for policy in args.policies or [settings.engine.prefix_policy]:
            with console.status(f"simulating {len(trace.arrivals):,} requests, {num_blocks:,} blocks, {policy}"):
                reports.append(simulate(trace, _shape(args, settings, trace, times, num_blocks, share, policy)))
    if args.html is not None:
        args.html.write_text(_page(reports, settings, times), encoding="utf-8")
        console.print(f"{args.html}")
    if args.json:
        sys.stdout.write(msgspec.json.encode(reports).decode() + "\n")
    else:
        _print(reports, settings, times)
    return 0


def _sizes(args: argparse.Namespace, settings: Settings, trace: Trace) -> list[tuple[int, float | None]]:
    """Return (blocks, share of the trace) of each pool to simulate."""
    size = settings.engine.block_size
    if args.kv_tokens is not None:
        return [(_blocks(args.kv_tokens, size), None)]
    distinct = trace.num_distinct_blocks * TRACE_BLOCK
    return [(_blocks(int(distinct * share / 100), size), share) for share in args.shares]


def _blocks(num_tokens: int, block_size: int) -> int:
    if num_tokens < block_size:
        raise ConfigError(
            f"a pool of {num_tokens} tokens holds no block of {block_size}; raise --kv-tokens or --shares"
        )
    return num_tokens // block_size


def _shape(
    args: argparse.Namespace,
    settings: Settings,
    trace: Trace,
    times: StepTimes,
    num_blocks: int,
    share: float | None,
    policy: PrefixPolicy,
) -> SimShape:
    engine, backend = settings.engine, _backend(settings.engine, times)
    window, sinks = engine.attention_window, engine.attention_sinks
    sizes = step_sizes(engine, backend)
    limits = SchedulerLimits(
        max_num_seqs=sizes.seqs.value,
        max_step_tokens=sizes.tokens.value,
        chunk_tokens=chunk_tokens(engine, backend, sizes).value,
        chunk_grows=chunk_grows(backend),
        max_context=engine.max_context or _CONTEXT,
        max_waiting=engine.max_waiting,
        prefix_cache=engine.prefix_cache,
        prefix_policy=policy,
        policy=settings.scheduling,
        reach=None if window is None else Reach(window=window, num_sinks=sinks),
        plans_ahead=async_scheduling(engine, backend).value,
    )
    return SimShape(
        limits=limits,
        num_blocks=num_blocks,
        block_size=engine.block_size,
        times=times,
        slo_ttft_s=args.slo_ttft_ms / 1e3,
        slo_tpot_s=args.slo_tpot_ms / 1e3,
        cache_share_percent=share,
    )


def _backend(engine: EngineSettings, times: StepTimes) -> str:
    """Return the backend whose engine is simulated: the one that was set, else one that step times are of."""
    if engine.backend != "auto":
        return engine.backend
    return "cuda" if times.on_device else "native"


def _cells(report: SimReport) -> tuple[str, ...]:
    share = report.cache_share_percent
    return (
        f"{report.num_blocks:,} blocks" if share is None else f"{share:g} %",
        report.policy,
        f"{report.hit_rate:.1%}",
        f"{report.of_unlimited:.1%}",
        f"{report.ttft_ms.p50:,.0f} / {report.ttft_ms.p99:,.0f} ms",
        f"{report.itl_ms.p50:,.1f} / {report.itl_ms.p99:,.1f} ms",
        f"{report.slo_share:.1%}, {report.goodput_rps:,.2f} rps",
        f"{report.refused:,}",
        f"{report.preemptions:,}",
    )


def _conditions(reports: list[SimReport], settings: Settings, times: StepTimes) -> list[tuple[str, str]]:
    first, backend = reports[0], _backend(settings.engine, times)
    sizes = step_sizes(settings.engine, backend)
    return [
        ("trace", f"{first.trace}, {first.requests:,} requests, {first.duration_s:,.0f} s simulated"),
        ("good", f"TTFT at most {first.slo_ttft_ms:,.0f} ms and mean ITL at most {first.slo_tpot_ms:,.0f} ms"),
        ("step times", times.source),
        ("prompts", f"as on the {backend} backend: {chunk_tokens(settings.engine, backend, sizes).reason}"),
        ("planning", f"as on the {backend} backend: {async_scheduling(settings.engine, backend).reason}"),
        ("busy", ", ".join(f"{report.utilization:.0%}" for report in reports)),
        ("simulated in", f"{sum(report.wall_s for report in reports):,.1f} s"),
    ]


def _print(reports: list[SimReport], settings: Settings, times: StepTimes) -> None:
    table = Table(title=f"{reports[0].trace}, blocks of {reports[0].block_size} tokens", title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _COLUMNS[:2] else "right")
    for report in reports:
        table.add_row(*_cells(report))
    print_table(table)
    for name, value in _conditions(reports, settings, times):
        print(f"{name}: {value}")


def _page(reports: list[SimReport], settings: Settings, times: StepTimes) -> str:
    table = HtmlTable(
        title="All figures", columns=_COLUMNS, rows=tuple(_cells(report) for report in reports), note=_NOTE
    )
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by headrace {headrace.__version__}, headrace sim"
    conditions = [("made", made), *_conditions(reports, settings, times)]
    charts = (
        _chart(reports, "Prompt tokens found in the cache", "share of the prompt tokens", _hit_rate, "{:.1%}"),
        _chart(reports, "Good requests", "share of all requests", _good, "{:.1%}"),
        _chart(reports, "Time to first token, p99", "milliseconds", _ttft_p99, "{:,.0f} ms", is_lower_better=True),
        _chart(reports, "Gap between tokens, p99", "milliseconds", _itl_p99, "{:,.1f} ms", is_lower_better=True),
    )
    return render_page(f"{reports[0].trace} in simulation", conditions, [*charts, table])


def _chart(
    reports: list[SimReport],
    title: str,
    unit: str,
    read: Callable[[SimReport], float],
    form: str,
    *,
    is_lower_better: bool = False,
) -> Chart:
    """Draw one figure of every simulation, in the order of the table; the best are told by their colour, too."""
    values = [read(report) for report in reports]
    best, worst = (min(values), max(values)) if is_lower_better else (max(values), min(values))
    bars = tuple(
        Bar(
            label=" ".join(_cells(report)[:2]),
            value=value,
            low=value,
            high=value,
            text=form.format(value),
            is_ours=form.format(value) == form.format(best) != form.format(worst),
        )
        for report, value in zip(reports, values, strict=True)
    )
    return Chart(title=title, unit=unit, bars=bars, is_lower_better=is_lower_better)


def _hit_rate(report: SimReport) -> float:
    return report.hit_rate


def _good(report: SimReport) -> float:
    return report.slo_share


def _ttft_p99(report: SimReport) -> float:
    return report.ttft_ms.p99


def _itl_p99(report: SimReport) -> float:
    return report.itl_ms.p99
