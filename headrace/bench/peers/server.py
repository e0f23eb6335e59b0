"""Servers under the same HTTP load: each started on a loopback port, driven by `bench.load`, stopped by pid.

All servers stay up and idle while one is driven, round after round, so drift of the machine hits all of them. An idle
server that still burns CPU would disturb the others: its idle CPU share is measured and reported.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import msgspec

from headrace.bench.load import LoadPlan, run_load
from headrace.bench.metrics import LoadReport
from headrace.bench.peers.process import PeerError, last_words

_IDLE_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """How to start one server.

    weights  label of what it computes with, as for the engine of its family that is scored
    command  `{port}` in it is replaced
    model    the name its API expects
    """

    name: str
    family: str
    weights: str
    command: tuple[str, ...]
    model: str
    ready_path: str = "/health"
    environment: tuple[tuple[str, str], ...] = ()
    start_timeout_s: float = 600.0


class ServerRun(msgspec.Struct, frozen=True, kw_only=True):
    """One server under one number of clients, one report per round.

    client_cpu  CPU seconds per wall second that the load itself took, 1.0 = one core, each round
    """

    server: str
    family: str
    num_clients: int
    reports: tuple[LoadReport, ...]
    weights: str = ""
    client_cpu: tuple[float, ...] = ()

    @property
    def tokens_per_s(self) -> float:
        """Return the median over rounds."""
        return median(report.output_tokens_per_s for report in self.reports)


class PeerServer:
    """A started server process. Owns it; `close()` ends it."""

    def __init__(self, spec: ServerSpec, log: Path) -> None:
        self.spec = spec
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log.open("wb")
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [part.replace("{port}", str(self.port)) for part in spec.command],
            env={**os.environ, **dict(spec.environment)} if spec.environment else None,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            self._wait_ready(start)
        except PeerError:
            self.close()
            raise
        self.ready_s = time.perf_counter() - start

    def idle_cpu_share(self) -> float:
        """Return CPU seconds per wall second of the server and its children over two idle seconds, 1.0 = one core."""
        before = _session_cpu_s(self._process.pid)
        time.sleep(_IDLE_WINDOW_S)
        return (_session_cpu_s(self._process.pid) - before) / _IDLE_WINDOW_S

    def close(self) -> None:
        """End the server's process group and wait for it. Idempotent."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 15)
            try:
                self._process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, 9)
                self._process.wait()
        self._log.close()

    def _wait_ready(self, start: float) -> None:
        while time.perf_counter() - start < self.spec.start_timeout_s:
            if self._process.poll() is not None:
                code = self._process.returncode
                raise PeerError(f"{self.spec.name} ended with code {code}; {last_words(self._log.name)}")
            try:
                if httpx.get(self.url + self.spec.ready_path, timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.02)
        raise PeerError(
            f"{self.spec.name} was not ready after {self.spec.start_timeout_s:g} s; {last_words(self._log.name)}"
        )


def run_servers(
    servers: Sequence[PeerServer],
    *,
    clients: Sequence[int],
    rounds: int,
    prompt_words: int,
    output_tokens: int,
    progress: Callable[[str], None],
) -> list[ServerRun]:
    """Drive every server with every number of clients, interleaved; two requests per client and round."""
    reports: dict[tuple[str, int], list[LoadReport]] = {}
    client_cpu: dict[tuple[str, int], list[float]] = {}
    for index in range(rounds):
        for count in clients:
            for server in servers:
                progress(f"round {index + 1}/{rounds} · {count} clients · {server.spec.name}")
                plan = LoadPlan(
                    url=f"{server.url}/v1/completions",
                    model=server.spec.model,
                    num_clients=count,
                    num_requests=2 * count,
                    prompt_words=prompt_words,
                    output_tokens=output_tokens,
                    seed=1 + index * len(clients) + count,
                )
                began_s = time.process_time()
                report = asyncio.run(run_load(plan))
                spent_s = time.process_time() - began_s
                reports.setdefault((server.spec.name, count), []).append(report)
                client_cpu.setdefault((server.spec.name, count), []).append(spent_s / max(report.duration_s, 1e-9))
    specs = {server.spec.name: server.spec for server in servers}
    return [
        ServerRun(
            server=name,
            family=specs[name].family,
            weights=specs[name].weights,
            num_clients=count,
            reports=tuple(found),
            client_cpu=tuple(client_cpu[name, count]),
        )
        for (name, count), found in reports.items()
    ]


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _session_cpu_s(session: int) -> float:
    """Sum CPU seconds of all processes in a session (Linux; 0 elsewhere)."""
    ticks = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
