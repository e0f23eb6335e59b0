"""A real Prometheus for tests: Debian's or any other on the PATH, on loopback, in a directory of the test's own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

START_S = 60.0


def has_prometheus() -> bool:
    """Whether there is a prometheus to start, and the promtool that comes with it."""
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


class PrometheusServer:
    """Asks a running server."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=60.0)

    def get(self, path: str, **params: str) -> Any:
        reply = self._client.get(f"/api/v1/{path}", params=params)
        document = reply.json()
        assert document["status"] == "success", f"{params}: {document}"
        return document["data"]

    def query(self, expr: str) -> list[Any]:
        result = self.get("query", query=expr)["result"]
        assert isinstance(result, list)
        return result

    def wait_for(self, ask: Callable[[], Any]) -> Any:
        """Ask until the answer is not empty: scrapes and rules come by the clock."""
        deadline_s = time.monotonic() + START_S
        while not (answer := ask()):
            assert time.monotonic() < deadline_s, "Prometheus has no answer"
            time.sleep(0.05)
        return answer

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._client.close()


@contextmanager
def running_prometheus(config: Path) -> Iterator[PrometheusServer]:
    """Start a server on a free port of loopback; it is gone afterwards."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    log = config.parent / "prometheus.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                "prometheus", f"--config.file={config}", f"--storage.tsdb.path={config.parent / 'tsdb'}",
                f"--web.listen-address={address}", "--log.level=warn",
            ],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )  # fmt: skip
    server = PrometheusServer(f"http://{address}")
    try:
        deadline_s = time.monotonic() + START_S
        while not server.is_ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, f"prometheus did not start\n{log.read_text()}"
            time.sleep(0.05)
        yield server
    finally:
        server.close()
        process.terminate()
        process.wait()
