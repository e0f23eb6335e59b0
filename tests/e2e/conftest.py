"""Real server processes on tiny random models, reached over real sockets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import httpx
import pytest
from openai import OpenAI

from headrace.testing.checkpoints import write_checkpoint

LIMIT_S = 180.0  # one server's whole life; a hanging one is killed
UNTIL_S = 60.0  # that a server gets to come into a state; it and its test may be held up for seconds
SMALL = ["--kv-memory-mib", "8", "--max-num-seqs", "16", "--max-step-tokens", "64"]

# `headrace serve` whose steps take 50 ms each while there is a file of the name that comes first.
BRAKED = """
import sys, time
from pathlib import Path
from headrace.app import backends
from headrace.cli import main

real, brake = backends.open_executor, Path(sys.argv[1])

def open_braked(*args, **kwargs):
    executor = real(*args, **kwargs)
    launch = executor.launch
    def braked(step):
        if brake.exists():
            time.sleep(0.05)
        return launch(step)
    executor.launch = braked
    return executor

backends.open_executor = open_braked
sys.exit(main(["serve", *sys.argv[2:], "--port", "0"]))
"""


def environment() -> dict[str, str]:
    """This environment without settings that somebody has exported."""
    return {name: text for name, text in os.environ.items() if not name.startswith("HEADRACE_SERVER")}


def until(is_so: Callable[[], Any]) -> Any:
    """Ask until the answer is true, and return it."""
    deadline_s = time.monotonic() + UNTIL_S
    while not (answer := is_so()):
        assert time.monotonic() < deadline_s, "it did not come to it"
        time.sleep(0.01)
    return answer


class Server:
    """One process of `headrace serve`, or of a script that ends in it."""

    def __init__(self, command: list[str], brake: Path | None = None) -> None:
        self._brake = brake
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._timer = Timer(LIMIT_S, self.process.kill)
        self._timer.start()
        self._stderr: list[str] = []
        self._clients: list[OpenAI] = []
        self._reader = Thread(target=self._read_stderr)
        self._reader.start()
        assert self.process.stdout is not None
        self.invitation = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", self.invitation)
        self.url = found.group() if found else ""

    @property
    def log(self) -> str:
        return "".join(self._stderr)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, trust_env=False)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, trust_env=False)

    def metric(self, name: str) -> float:
        """The value of a gauge or counter without further labels."""
        found = re.search(rf"^{re.escape(name)}\{{model_name=\"[^\"]*\"\}} (\S+)$", self.get("/metrics").text, re.M)
        assert found, name
        return float(found.group(1))

    @contextmanager
    def slowed(self) -> Iterator[Callable[[], None]]:
        """Let a step take 50 ms meanwhile: however long the test is held up, a long answer is still on its way.

        What it gives ends that early.
        """
        assert self._brake is not None
        self._brake.touch()
        release = partial(self._brake.unlink, missing_ok=True)
        try:
            yield release
        finally:
            release()

    def openai(self) -> OpenAI:
        client = OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=120)
        self._clients.append(client)
        return client

    def stop(self) -> int:
        """Ask it to end; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        for client in self._clients:
            client.close()
        code = self.process.wait()
        self._timer.cancel()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        return code

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self._stderr.extend(stream)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer llama over bytes, with a ChatML template."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


StartServer = Callable[..., Any]


@contextmanager
def running(*args: str, script: str | None = None, has_brake: bool = False) -> Iterator[Server]:
    command = ["-m", "headrace", "serve", *args, "--port", "0"] if script is None else ["-c", script, *args]
    with tempfile.TemporaryDirectory(prefix="headrace-brake-") as folder:
        brake = Path(folder) / "brake" if has_brake else None
        if brake is not None:
            command = ["-c", BRAKED, str(brake), *args]
        server = Server([sys.executable, *command], brake)
        try:
            assert server.url, server.log
            yield server
        finally:
            server.stop()


@pytest.fixture
def start_server() -> StartServer:
    return running


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Iterator[Server]:
    """A server of the tiny model, shared by a file's tests; it must end cleanly."""
    with running(f"file:{tiny_path}", "--backend", "reference", *SMALL, has_brake=True) as server:
        yield server
        assert server.stop() == 0, server.log
    assert "Traceback" not in server.log
