"""`headrace bench peers`: runs the comparison and writes it as JSON and as an HTML page.

Owns the order: quality first (it warms files up), then offline speed with all engines loaded, then HTTP. What could not
take part is part of the report. Nothing is tuned for one side after the numbers are seen.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

import headrace
from headrace.app.hardware import detect
from headrace.app.pulling import ensure_pulled
from headrace.app.scoring import open_scorer
from headrace.bench.peers.compare import Failure, Measurement, best_ratio, run_rounds
from headrace.bench.peers.line_up import Ground, LineUp, line_up
from headrace.bench.peers.process import PeerError, PeerProcess, PeerSpec
from headrace.bench.peers.server import PeerServer, ServerRun, run_servers
from headrace.bench.report import Bar, Chart, Table, render_page
from headrace.bench.token_prompts import TokenPrompts
from headrace.core.settings import Settings
from headrace.evals import default_text
from headrace.evals.compare import Comparison, score_chunk, summarize
from headrace.evals.quality import split_contexts
from headrace.ops.probe import read_bandwidth

BATCHES, CLIENTS = (1, 8, 32), (16, 64)
_QUALITY_CHUNKS = 6
Say = Callable[[str], None]


class Participant(msgspec.Struct, frozen=True, kw_only=True):
    """One engine as it took part: what it says of itself, and how long it took from process start to ready."""

    name: str
    family: str
    weights: str
    ready_s: float
    version: str = ""
    settings: str = ""
    peak_rss_mib: float | None = None


class PeersResult(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was measured, as it is written to JSON."""

    date: str
    headrace: str
    machine: str
    cores: int
    isa: tuple[str, ...]
    read_gb_per_s: float
    model: str
    rounds: int
    participants: tuple[Participant, ...]
    quality: dict[str, Comparison]
    measurements: tuple[Measurement, ...]
    http: tuple[ServerRun, ...]
    server_ready_s: dict[str, float]
    server_idle_cpu: dict[str, float]
    failures: tuple[Failure, ...]
    absent: tuple[tuple[str, str], ...]


def run_peers(settings: Settings, peers: Path, out: Path, *, rounds: int, http_rounds: int) -> int:
    """Run the whole comparison and write OUT.json and OUT.html; return the exit code."""
    console = Console(stderr=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = detect()
    local = ensure_pulled(settings, settings.first_model)
    scratch = Path(settings.cache_dir).expanduser() / "peers"
    scratch.mkdir(parents=True, exist_ok=True)
    with console.status("preparing models") as status:
        say: Say = status.update
        threads = settings.engine.threads or machine.cores
        ground = Ground(
            model=settings.first_model, path=local.path, peers=peers.resolve(), scratch=scratch, threads=threads
        )
        teams = line_up(ground)
        failures: list[Failure] = []
        with tempfile.TemporaryDirectory() as logs:
            participants, quality, measured = _offline(settings, teams, Path(logs), rounds, failures, say)
            http, ready, idle = _online(teams, Path(logs), http_rounds, failures, say)
    result = PeersResult(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headrace=headrace.__version__,
        machine=machine.cpu,
        cores=machine.cores,
        isa=machine.isa,
        read_gb_per_s=read_bandwidth(machine.cores) / 1e9,
        model=settings.first_model,
        rounds=rounds,
        participants=tuple(participants),
        quality=quality,
        measurements=tuple(measured),
        http=tuple(http),
        server_ready_s=ready,
        server_idle_cpu=idle,
        failures=tuple(failures),
        absent=teams.absent,
    )
    out.with_suffix(".json").write_bytes(
        msgspec.json.format(msgspec.json.encode(msgspec.to_builtins(result)), indent=1)
    )
    out.with_suffix(".html").write_text(render_result(result), encoding="utf-8")
    Console().print(f"{out.with_suffix('.html')} · {out.with_suffix('.json')}")
    return 0


def _offline(
    settings: Settings, teams: LineUp, logs: Path, rounds: int, failures: list[Failure], say: Say
) -> tuple[list[Participant], dict[str, Comparison], list[Measurement]]:
    """Start every engine, score it, and measure all of them in turn."""
    say("scoring the text in fp32")
    chunks, base = _base_logits(settings)
    with ExitStack() as stack:
        started = [peer for spec in teams.offline if (peer := _start(spec, logs, failures, say)) is not None]
        for peer in started:
            stack.callback(peer.close)
        quality = _quality(started, chunks, base, logs, failures, say)
        prompts = TokenPrompts(base.shape[1])
        del base
        measured, failed = run_rounds(started, prompts, batches=BATCHES, rounds=rounds, progress=say)
        failures += failed
        participants = [_participant(peer) for peer in started]
    return participants, quality, measured


def _base_logits(settings: Settings) -> tuple[list[list[int]], NDArray[np.float32]]:
    exact = msgspec.structs.replace(settings.engine, backend="reference", quantization="auto", kv_dtype="auto")
    with open_scorer(msgspec.structs.replace(settings, engine=exact)) as scorer:
        tokens = scorer.tokenizer.encode(default_text(), add_special=False)
        chunks = split_contexts(tokens, scorer.tokenizer.bos_id)[:_QUALITY_CHUNKS]
        return chunks, np.concatenate([scorer.logits(chunk) for chunk in chunks])


def _start(spec: PeerSpec, logs: Path, failures: list[Failure], say: Say) -> PeerProcess | None:
    say(f"starting {spec.name}")
    try:
        return PeerProcess(spec, logs / f"{spec.name.replace(' ', '-')}.log")
    except PeerError as error:
        failures.append(Failure(engine=spec.name, task="start", reason=str(error)))
        return None


def _quality(
    started: Sequence[PeerProcess],
    chunks: list[list[int]],
    base: NDArray[np.float32],
    scratch: Path,
    failures: list[Failure],
    say: Say,
) -> dict[str, Comparison]:
    """Compare every engine that gives logits with the fp32 model, on the same chunks."""
    found: dict[str, Comparison] = {}
    for peer in started:
        say(f"scoring the text with {peer.spec.name}")
        path = scratch / "logits.npy"
        try:
            peer.ask(task="logits", chunks=chunks, path=str(path))
        except PeerError as error:
            failures.append(Failure(engine=peer.spec.name, task="quality", reason=str(error)))
            continue
        found[peer.spec.name] = _compare(chunks, base, np.load(path, mmap_mode="r"))
        path.unlink()
    return found


def _compare(chunks: list[list[int]], base: NDArray[np.float32], test: NDArray[np.float32]) -> Comparison:
    scores, first = [], 0
    for chunk in chunks:
        rows = slice(first, first + len(chunk) - 1)
        targets = np.asarray(chunk[1:], dtype=np.int64)
        scores.append(score_chunk(base[rows], np.asarray(test[rows, : base.shape[1]]), targets))
        first += len(chunk)
    return summarize(scores)


def _participant(peer: PeerProcess) -> Participant:
    info = msgspec.convert(peer.ask(task="info"), _Info)
    return Participant(
        name=peer.spec.name,
        family=peer.spec.family,
        weights=peer.spec.weights,
        ready_s=peer.ready_s,
        version=info.version,
        settings=info.settings,
        peak_rss_mib=info.peak_rss_mib,
    )


class _Info(msgspec.Struct):
    version: str
    settings: str
    peak_rss_mib: float | None


def _online(
    teams: LineUp, logs: Path, rounds: int, failures: list[Failure], say: Say
) -> tuple[list[ServerRun], dict[str, float], dict[str, float]]:
    """Start every server, then drive all of them in turn."""
    servers: list[PeerServer] = []
    with ExitStack() as stack:
        for spec in teams.servers if rounds > 0 else ():
            say(f"starting {spec.name}")
            try:
                server = PeerServer(spec, logs / f"{spec.name.replace(' ', '-')}-server.log")
            except PeerError as error:
                failures.append(Failure(engine=spec.name, task="start", reason=str(error)))
                continue
            stack.callback(server.close)
            servers.append(server)
        idle = {server.spec.name: server.idle_cpu_share() for server in servers}
        runs = run_servers(servers, clients=CLIENTS, rounds=rounds, prompt_words=256, output_tokens=64, progress=say)
    return runs, {server.spec.name: server.ready_s for server in servers}, idle


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
            is_ours=m.family == "headrace",
        )
        for m in found
    )
    ratios = (
        f"{m.engine}: {best[0]:.2f}x {best[1]}"
        for m in found
        if m.family == "headrace" and (best := best_ratio(result.measurements, task, m.engine))
    )
    return Chart(title=task.capitalize(), unit="tokens per second", bars=bars, caption="; ".join(ratios))


def _http_chart(result: PeersResult, clients: int) -> Chart | None:
    bars = []
    for run in result.http:
        if run.num_clients == clients:
            rates = [report.output_tokens_per_s for report in run.reports]
            bars.append(
                Bar(
                    label=run.server,
                    value=median(rates),
                    low=min(rates),
                    high=max(rates),
                    text=f"{median(rates):,.0f} tok/s",
                    is_ours=run.family == "headrace",
                )
            )
    if not bars:
        return None
    title = f"HTTP, {clients} streaming clients, 256 words in, 64 tokens out"
    return Chart(title=title, unit="output tokens per second", bars=tuple(bars))


def _quality_table(result: PeersResult) -> Table:
    rows = tuple(
        (name, f"{q.mean_kl.value:.4f}", f"{q.ppl_ratio.value:.4f}", f"{q.same_top.value:.1%}", f"{q.num_tokens:,}")
        for name, q in result.quality.items()
    )
    return Table(
        title="Quality against the same weights in fp32",
        columns=("engine", "mean KL, nats", "perplexity ratio", "same top token", "tokens"),
        rows=rows,
        note="The fp32 model is the checkpoint's own weights, decoded.",
        ours=_our_names(result),
    )


def _http_table(result: PeersResult) -> Table:
    rows = []
    for run in result.http:
        middle = sorted(run.reports, key=lambda report: report.output_tokens_per_s)[len(run.reports) // 2]
        rows.append(
            (
                run.server, str(run.num_clients), f"{middle.output_tokens_per_s:,.0f}", f"{middle.ttft_ms.mean:,.0f}",
                f"{middle.ttft_ms.p99:,.0f}", f"{middle.itl_ms.mean:,.1f}", f"{middle.itl_ms.p99:,.1f}",
                f"{middle.failed}", f"{result.server_ready_s[run.server]:.1f}",
                f"{result.server_idle_cpu[run.server]:.1%}",
            )
        )  # fmt: skip
    return Table(
        title="Serving over HTTP",
        columns=(
            "server", "clients", "tok/s", "TTFT mean, ms", "TTFT p99", "ITL mean, ms", "ITL p99", "failed", "ready, s",
            "idle CPU",
        ),
        rows=tuple(rows),
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
            p.settings,
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
    return frozenset(p.name for p in result.participants if p.family == "headrace")


def _losses(result: PeersResult) -> list[str]:
    """Name every task where the best other engine is faster than our best."""
    lines = []
    for task in _tasks(result):
        ours = [m for m in result.measurements if m.task == task and m.family == "headrace"]
        others = [m for m in result.measurements if m.task == task and m.family != "headrace"]
        if ours and others:
            mine, best = (max(group, key=lambda m: m.tokens_per_s) for group in (ours, others))
            if best.tokens_per_s > mine.tokens_per_s:
                lines.append(f"{task}: {best.engine} {best.tokens_per_s:,.0f}, {mine.engine} {mine.tokens_per_s:,.0f}")
    return lines
