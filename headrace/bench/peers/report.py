"""`headrace bench peers`: runs the comparison and has it written as JSON and as an HTML page.

Owns the order: quality first (it warms files up), then offline speed with all engines loaded, then HTTP. What could not
take part is part of the report. Nothing is tuned for one side after the numbers are seen.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

import headrace
from headrace.app.hardware import detect
from headrace.app.pulling import ensure_pulled
from headrace.app.scoring import open_scorer
from headrace.bench.peers.compare import Failure, Measurement, run_rounds
from headrace.bench.peers.line_up import Ground, LineUp, line_up
from headrace.bench.peers.page import render_result
from headrace.bench.peers.process import PeerError, PeerProcess, PeerSpec
from headrace.bench.peers.result import CLIENTS, Participant, PeersResult
from headrace.bench.peers.server import PeerServer, ServerRun, run_servers
from headrace.bench.token_prompts import TokenPrompts
from headrace.core.settings import Settings
from headrace.evals import default_text
from headrace.evals.compare import Comparison, score_chunk, summarize
from headrace.evals.quality import split_contexts
from headrace.ops.probe import read_bandwidth

BATCHES = (1, 8, 32)
_QUALITY_CHUNKS = 6
Say = Callable[[str], None]


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
