"""The page of a comparison: charts, tables, and where another engine is better.

Pure function from a `PeersResult` to HTML, beside `report`, which makes one; the looks are `bench.report`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from headrace.bench.metrics import LoadReport
from headrace.bench.peers.compare import MOST_KL
from headrace.bench.peers.result import (
    CLIENTS,
    OURS,
    PeersResult,
    best_other,
    http_ratio,
    is_alike,
    mean_kl,
    server_kl,
    task_ratio,
)
from headrace.bench.peers.server import ServerRun
from headrace.bench.report import Bar, Chart, Table, render_page

_TITLES = {
    "prefill 512": "Prefill: a prompt of 512 tokens",
    "decode batch 1": "Decode: one sequence",
    "decode batch 8": "Decode: 8 sequences together",
    "decode batch 32": "Decode: 32 sequences together",
}


def render_result(result: PeersResult) -> str:
    """Return the HTML page."""
    sections: list[Chart | Table] = [_speed_chart(result, task) for task in _tasks(result)]
    sections += [chart for count in CLIENTS if (chart := _http_chart(result, count)) is not None]
    sections += [_quality_table(result), _http_table(result), _participants_table(result), _failures_table(result)]
    conditions = [
        ("Date", result.date),
        ("Machine", f"{result.machine}, {result.cores} cores ({', '.join(result.isa)})"),
        ("Read bandwidth", f"{result.read_gb_per_s:.1f} GB/s"),
        ("Model", result.model),
        ("Command", f"headrace bench peers --rounds {result.rounds}"),
        ("Method", "all engines loaded, idle while another works; medians over interleaved rounds"),
    ]
    return render_page(f"Headrace {result.headrace} beside other engines", conditions, sections, _losses(result))


def _tasks(result: PeersResult) -> list[str]:
    return list(dict.fromkeys(m.task for m in result.measurements))


def _speed_chart(result: PeersResult, task: str) -> Chart:
    found = sorted((m for m in result.measurements if m.task == task), key=lambda m: -m.tokens_per_s)
    bars = tuple(
        Bar(
            label=m.engine,
            value=m.tokens_per_s,
            low=min(m.rounds),
            high=max(m.rounds),
            text=f"{m.tokens_per_s:,.0f} tok/s",
            is_ours=m.family == OURS,
            aside=_aside(mean_kl(result, m.engine)),
        )
        for m in found
    )
    ratios = (
        f"{m.engine}: {best[0]:.2f} × {best[1]}"
        for m in found
        if m.family == OURS and (best := task_ratio(result, task, m.engine))
    )
    return Chart(
        title=_TITLES.get(task, task.capitalize()), unit="tokens per second", bars=bars, caption=_compared(ratios)
    )


def _compared(ratios: Iterable[str]) -> str:
    """Say what our speeds are over the best other of like quality, if there is one."""
    listed = "; ".join(ratios)
    return f"Over the fastest other of like quality: {listed}." if listed else ""


def _aside(kl: float | None) -> str:
    """Say of a bar that its answers are not those of the model, so that its speed is no yardstick."""
    return "" if is_alike(kl) or kl is None else f"(KL {kl:.2f})"


def _http_chart(result: PeersResult, clients: int) -> Chart | None:
    runs = sorted((run for run in result.http if run.num_clients == clients), key=lambda run: -run.tokens_per_s)
    if not runs:
        return None
    bars = []
    for run in runs:
        rates = [report.output_tokens_per_s for report in run.reports]
        bars.append(
            Bar(
                label=run.server,
                value=run.tokens_per_s,
                low=min(rates),
                high=max(rates),
                text=f"{run.tokens_per_s:,.0f} tok/s",
                is_ours=run.family == OURS,
                aside=_aside(server_kl(result, run)),
            )
        )
    ratios = (
        f"{run.server}: {best[0]:.2f} × {best[1]}"
        for run in runs
        if run.family == OURS and (best := http_ratio(result, run))
    )
    title = f"HTTP, {clients} streaming clients, 256 words in, 64 tokens out"
    return Chart(title=title, unit="output tokens per second", bars=tuple(bars), caption=_compared(ratios))


def _quality_table(result: PeersResult) -> Table:
    rows = tuple(
        (name, f"{q.mean_kl.value:.4f}", f"{q.ppl_ratio.value:.4f}", f"{q.same_top.value:.1%}", f"{q.num_tokens:,}")
        for name, q in result.quality.items()
    )
    return Table(
        title="Quality against the same weights in fp32",
        columns=("engine", "mean KL, nats", "perplexity ratio", "same top token", "tokens"),
        rows=rows,
        note="The fp32 model is the checkpoint's own weights, decoded. Lower KL is better; speeds are compared between "
        f"engines below {MOST_KL} nats only, and a chart names the KL of the others.",
        ours=_our_names(result),
    )


def _http_table(result: PeersResult) -> Table:
    rows = []
    for run in result.http:
        middle = sorted(run.reports, key=lambda report: report.output_tokens_per_s)[len(run.reports) // 2]
        kl = server_kl(result, run)
        rows.append(
            (
                run.server, "–" if kl is None else f"{kl:.4f}", str(run.num_clients),
                f"{middle.output_tokens_per_s:,.0f}", f"{middle.ttft_ms.mean:,.0f}",
                f"{middle.ttft_ms.p99:,.0f}", f"{middle.itl_ms.mean:,.1f}", f"{middle.itl_ms.p99:,.1f}",
                f"{middle.failed}", f"{median(run.client_cpu):.1%}" if run.client_cpu else "–",
                f"{result.server_ready_s[run.server]:.1f}",
                f"{result.server_idle_cpu[run.server]:.1%}",
            )
        )  # fmt: skip
    return Table(
        title="Serving over HTTP",
        columns=(
            "server", "mean KL", "clients", "tok/s", "TTFT mean, ms", "TTFT p99", "ITL mean, ms", "ITL p99", "failed",
            "load, CPU", "ready, s", "idle CPU",
        ),
        rows=tuple(rows),
        note="Load: what the clients took of one core of the machine under test. Mean KL: of the same weights offline.",
        ours=_our_names(result),
    )  # fmt: skip


def _participants_table(result: PeersResult) -> Table:
    rows = tuple(
        (
            p.name,
            p.weights,
            f"{p.ready_s:.2f}",
            "–" if p.peak_rss_mib is None else f"{p.peak_rss_mib:,.0f}",
            p.version,
            p.settings.removesuffix(", {}"),
        )
        for p in result.participants
    )
    return Table(
        title="Engines and settings",
        columns=("engine", "weights", "process to ready, s", "peak RSS, MiB", "version", "settings"),
        rows=rows,
        ours=_our_names(result),
    )


def _failures_table(result: PeersResult) -> Table:
    rows = tuple((f.engine, f.task, f.reason[:400]) for f in result.failures)
    rows += tuple((name, "absent", reason[:400]) for name, reason in result.absent)
    return Table(title="What could not take part", columns=("engine", "task", "reason"), rows=rows)


def _our_names(result: PeersResult) -> frozenset[str]:
    return frozenset(p.name for p in result.participants if p.family == OURS)


def _losses(result: PeersResult) -> list[str]:
    """Name every task where the best other engine is faster than our best, and each HTTP figure that is better."""
    lines = []
    for task in _tasks(result):
        ours = [m for m in result.measurements if m.task == task and m.family == OURS]
        others = [m for m in result.measurements if m.task == task and m.family != OURS]
        if ours and others:
            mine, best = (max(group, key=lambda m: m.tokens_per_s) for group in (ours, others))
            if best.tokens_per_s > mine.tokens_per_s:
                lines.append(f"{task}: {best.engine} {best.tokens_per_s:,.0f}, {mine.engine} {mine.tokens_per_s:,.0f}")
    return lines + [line for run in result.http if run.family == OURS for line in _http_losses(result, run)]


def _http_losses(result: PeersResult, ours: ServerRun) -> list[str]:
    """Name the tails that the fastest other server of like quality has shorter."""
    best = best_other(result, ours.num_clients)
    if best is None:
        return []
    lines = []
    for name, read in (("TTFT", _ttft_p99), ("ITL", _itl_p99)):
        mine, theirs = median(map(read, ours.reports)), median(map(read, best.reports))
        if theirs < mine:
            what = f"HTTP, {ours.num_clients} clients, p99 {name}"
            lines.append(f"{what}: {best.server} {theirs:,.0f} ms, {ours.server} {mine:,.0f} ms")
    return lines


def _ttft_p99(report: LoadReport) -> float:
    return report.ttft_ms.p99


def _itl_p99(report: LoadReport) -> float:
    return report.itl_ms.p99
