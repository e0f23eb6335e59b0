"""`headrace why ID` against a server that answers one question."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from headrace.cli import main

ANSWER = {
    "id": "cmpl-a b",
    "model": "m",
    "state": "waiting",
    "sentence": "It waits as number 2 of 5.",
    "age_s": 1.5,
    "choices": [
        {"index": 0, "state": "waiting", "sentence": "It waits as number 2 of 5."},
        {"index": 1, "state": "running", "sentence": "It is running."},
    ],
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_known = self.path == "/v1/requests/a%20b/why" and self.headers["authorization"] == "Bearer k"
        body = json.dumps(ANSWER if is_known else {"error": {"message": "no request 'x' of this API key"}}).encode()
        self.send_response(200 if is_known else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_answer_is_told_in_sentences(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "a b", "--url", url + "/v1/", "--api-key", "k"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "cmpl-a b · m · waiting · came 1.5 s ago",
        "It waits as number 2 of 5.",
        "  choice 1: It is running.",
    ]
    assert main(["why", "a b", "--url", url, "--api-key", "k", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWER


def test_a_server_without_an_answer_is_quoted(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "x", "--url", url]) == 1
    assert "answered 404: no request 'x'" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "x", "--url", "http://127.0.0.1:1"]) == 1
    assert "is the server running?" in capsys.readouterr().err
