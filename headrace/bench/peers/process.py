"""One engine in its own process, driven over pipes by the runner protocol (`runner.py`).

Owns the process: `close()` (or the context manager) ends it and waits. A peer that cannot start or breaks a request is
recorded as such; it never takes the comparison down.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

_RUNNERS = Path(__file__).parent


class PeerError(Exception):
    """A peer could not start or could not answer; the text is the peer's own."""


def last_words(log: str) -> str:
    """Return the last line a peer wrote, for reports that outlive its log."""
    lines = [line.strip() for line in Path(log).read_text(errors="replace").splitlines() if line.strip()]
    return f"its last words: {lines[-1][-300:]}" if lines else "it said nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpec:
    """How to start one configuration of one engine.

    family   what is compared against: headrace, llama.cpp, openvino, vllm
    weights  label of what it computes with, e.g. `int4`; peers are matched by it for quality
    """

    name: str
    family: str
    weights: str
    python: Path
    script: str
    config: Mapping[str, object]
    environment: tuple[tuple[str, str], ...] = ()
    start_timeout_s: float = 600.0


class PeerProcess:
    """A started peer. Requests are answered one at a time, in order."""

    def __init__(self, spec: PeerSpec, log: Path) -> None:
        self.spec = spec
        self._log = log.open("wb")
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [str(spec.python), spec.script, json.dumps(dict(spec.config))],
            cwd=_RUNNERS,
            env={**os.environ, **dict(spec.environment)} if spec.environment else None,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            self._answer()
        except PeerError:
            self.close()
            raise
        self.ready_s = time.perf_counter() - start

    def ask(self, **request: object) -> dict[str, object]:
        """Send a request and return its answer. Raises PeerError with the peer's message."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise PeerError(f"{self.spec.name} has ended: {error}; {last_words(self._log.name)}") from error
        return self._answer()

    def seconds(self, prompts: list[list[int]], output_tokens: int) -> float:
        """Generate and return the wall time of the call in seconds."""
        answer = self.ask(task="generate", prompts=prompts, output_tokens=output_tokens)
        return msgspec.convert(answer["seconds"], float)

    def close(self) -> None:
        """Close stdin, wait ten seconds, then kill. Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"{self.spec.name} ended without an answer; {last_words(self._log.name)}")
        answer = msgspec.json.decode(line, type=dict[str, object])
        if "error" in answer:
            raise PeerError(f"{self.spec.name}: {answer['error']}")
        return answer
