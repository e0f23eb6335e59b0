"""What a comparison came to, as it is written to JSON, and the questions that a reader asks of it.

Pure values and functions: written by `report`, read by `page`. Speeds are compared between engines of like quality
only: mean KL from the fp32 model below `MOST_KL`. An engine without logits is taken at the word of its weights' type.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from headrace.bench.peers.compare import MOST_KL, Failure, Measurement, best_ratio
from headrace.bench.peers.server import ServerRun
from headrace.evals.compare import Comparison

CLIENTS = (16, 64)
OURS = "headrace"


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


def mean_kl(result: PeersResult, engine: str) -> float | None:
    """Return an engine's mean KL from the fp32 model in nats, None where it gives no logits."""
    scored = result.quality.get(engine)
    return None if scored is None else scored.mean_kl.value


def server_kl(result: PeersResult, run: ServerRun) -> float | None:
    """Return the mean KL of the engine of the server's family that computes with the same weights."""
    same = (p.name for p in result.participants if (p.family, p.weights) == (run.family, run.weights))
    return next((mean_kl(result, name) for name in same), None)


def task_ratio(result: PeersResult, task: str, ours: str) -> tuple[float, str] | None:
    """Return (ours / the best other family's of like quality, that engine) on an offline task."""
    alike = [m for m in result.measurements if m.engine == ours or is_alike(mean_kl(result, m.engine))]
    return best_ratio(alike, task, ours)


def http_ratio(result: PeersResult, ours: ServerRun) -> tuple[float, str] | None:
    """Return (output tokens/s of ours / the best other family's of like quality, that server); median over rounds."""
    best = best_other(result, ours.num_clients)
    if best is None:
        return None
    pairs = zip(ours.reports, best.reports, strict=False)
    return median(a.output_tokens_per_s / b.output_tokens_per_s for a, b in pairs), best.server


def best_other(result: PeersResult, clients: int) -> ServerRun | None:
    """Return the fastest server of another family and of like quality that finished anything under `clients`."""
    others: Sequence[ServerRun] = [
        run
        for run in result.http
        if run.num_clients == clients and run.family != OURS and is_alike(server_kl(result, run)) and run.tokens_per_s
    ]
    return max(others, key=lambda run: run.tokens_per_s, default=None)


def is_alike(kl: float | None) -> bool:
    """Say whether a mean KL is one of like quality."""
    return kl is None or kl < MOST_KL
