"""A web server on loopback that can be told to misbehave, and wheels made by hand."""

from __future__ import annotations

import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@dataclass
class Site:
    """What the server answers. Paths map to bytes; the rest is how it fails.

    cuts      bytes to send of a path before the connection is closed, one entry used up per request
    redirects path → location
    statuses  path → status instead of a body
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    has_ranges: bool = True
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def ranges(self) -> list[str | None]:
        """The Range header of each request so far."""
        return [headers.get("range") for _, headers in self.requests]


class Handler(BaseHTTPRequestHandler):
    """Serves a Site."""

    site: Site

    def do_GET(self) -> None:
        site, path = self.site, self.path.partition("?")[0]
        headers = {key.lower(): value for key, value in self.headers.items()}
        site.requests.append((self.path, headers))
        if path in site.redirects:
            return self.answer(302, {"Location": site.redirects[path]}, b"")
        if path in site.statuses or path not in site.files:
            return self.answer(site.statuses.get(path, 404), {}, b"")
        body, extra = site.files[path], {}
        tag = site.etags.get(path)
        if tag:
            extra["ETag"] = tag
        wanted = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        if wanted and site.has_ranges and headers.get("if-range", tag) == tag:
            start = int(wanted[1])
            if start >= len(body):
                return self.answer(416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            extra["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self.answer(206, extra, body[start:], path)
        return self.answer(200, extra, body, path)

    def answer(self, status: int, headers: dict[str, str], body: bytes, path: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        cuts = self.site.cuts.get(path)
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    """A fresh server on a free port."""
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Shelf:
    """A directory of wheels that pip is pointed at; it reaches nothing else."""

    directory: Path

    def add(self, package: str, members: dict[str, bytes], version: str = "1.0") -> Path:
        """Put a wheel there."""
        path = self.directory / f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        info = f"{package.replace('-', '_')}-{version}.dist-info"
        records = "".join(f"{name},,\n" for name in members)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", f"{records}{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
        return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """pip without a network, with one directory to look in."""
    directory = tmp_path / "shelf"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return Shelf(directory)
