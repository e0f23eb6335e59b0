"""`headrace upstreams`: who is there, who is not, and why."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import main


class Listing(BaseHTTPRequestHandler):
    """Lists one model to whoever sends the key."""

    def do_GET(self) -> None:
        is_known = self.headers["authorization"] == "Bearer sk-right"
        payload = json.dumps({"data": [{"id": "there"}]}).encode()
        self.send_response(200 if is_known else 401)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Listing)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def probed(tmp_path: Path, capsys: Any, **upstreams: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Run the command over upstreams of one model; return its exit code and what it says of each."""
    lines = []
    for name, fields in upstreams.items():
        lines.append(f"[upstreams.{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in fields.items() if key != "model"]
        lines.append(f'models = {{ public = "{fields.get("model", "there")}" }}')
    config = tmp_path / "c.toml"
    config.write_text("\n".join(lines))
    code = main(["upstreams", "--config", str(config), "--json"])
    return code, {probe["name"]: probe for probe in json.loads(capsys.readouterr().out)}


def test_a_server_that_answers_and_has_the_model_is_well(tmp_path: Path, capsys: Any, url: str) -> None:
    (tmp_path / "key").write_text("sk-right")
    code, probes = probed(tmp_path, capsys, well={"url": url, "api_key": f"file:{tmp_path / 'key'}"})
    assert code == 0
    assert probes["well"]["problem"] is None
    assert probes["well"]["round_trip_s"] > 0


def test_each_fault_is_named_and_no_key_is_shown(tmp_path: Path, capsys: Any, url: str) -> None:
    (tmp_path / "right").write_text("sk-right")
    (tmp_path / "wrong").write_text("sk-wrong")
    right = {"url": url, "api_key": f"file:{tmp_path / 'right'}"}
    code, probes = probed(
        tmp_path,
        capsys,
        rejects={"url": url, "api_key": f"file:{tmp_path / 'wrong'}"},
        lacks={**right, "model": "other"},
        keyless={"url": url, "api_key": "env:NO_SUCH_VARIABLE_HERE"},
        gone={"url": "http://127.0.0.1:1/v1"},
        odd={"url": "ftp://x/v1"},
    )
    assert code == 1
    said = {name: probe["problem"] for name, probe in probes.items()}
    assert "401" in said["rejects"]
    assert "other" in said["lacks"]
    assert "NO_SUCH_VARIABLE_HERE" in said["keyless"]
    assert "cannot be reached" in said["gone"]
    assert "upstreams.odd.url" in said["odd"]
    assert "sk-" not in json.dumps(probes)


def test_a_table_is_drawn_for_people(tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[upstreams.gone]\nurl = "http://127.0.0.1:1/v1"\nmodels = { a = "b" }\n')
    assert main(["upstreams", "--config", str(config)]) == 1
    assert "a = b" in capsys.readouterr().out


def test_no_upstreams_is_a_fault_of_the_configuration(capsys: Any) -> None:
    assert main(["upstreams"]) == 2
    assert "[upstreams.NAME]" in capsys.readouterr().err
