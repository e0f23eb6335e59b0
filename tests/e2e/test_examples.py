"""The example programs run as a reader would run them: against a real server, or alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
LIMIT_S = 240.0


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """`headrace serve` with the default model on a free port; SIGTERM must end it with exit code 0."""
    command = ["headrace", "serve", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    timer = Timer(LIMIT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        seen = []
        url = None
        while url is None and (line := process.stdout.readline()):
            seen.append(line)
            url = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert url is not None, "the server said no URL:\n" + "".join(seen)
        yield url.group()
        process.send_signal(signal.SIGTERM)
        tail, _ = process.communicate(timeout=60)
        assert process.returncode == 0, tail
    finally:
        timer.cancel()
        if process.poll() is None:
            process.kill()
            process.communicate()


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def execute(*command: str) -> str:
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text()
    assert [p.name for p in EXAMPLES.iterdir() if p.is_file() and f'"{p.name}"' not in source] == []


@pytest.mark.server
def test_the_openai_sdk_streams_an_answer(server_url: str) -> None:
    output = execute(sys.executable, str(EXAMPLES / "chat_openai_sdk.py"), server_url)
    assert "Paris" in output
    assert re.search(r"\[\d+ tokens in, \d+ out\]", output)


@pytest.mark.server
def test_curl_streams_events_up_to_done(server_url: str) -> None:
    output = execute("sh", str(EXAMPLES / "stream_curl.sh"), server_url)
    events = [line for line in output.splitlines() if line]
    assert all(line.startswith("data: ") for line in events)
    assert events[-1] == "data: [DONE]"
    assert '"usage":{' in events[-2]


def test_the_audit_log_finds_what_was_changed_behind_its_back() -> None:
    output = execute("sh", str(EXAMPLES / "audit_log.sh"))
    assert "key.create" in output
    assert "2 rows of the audit log are whole" in output
    assert output.splitlines()[-1] == "the change was found"


@pytest.mark.server
def test_prompts_are_answered_without_a_server() -> None:
    lines = execute(sys.executable, str(EXAMPLES / "offline_llm.py")).splitlines()
    assert "Paris" in next(line for line in lines if line.startswith("The capital of France is →"))


@pytest.mark.server
def test_a_few_requests_are_served_and_audited(tmp_path: Path) -> None:
    page = tmp_path / "stack.html"
    output = execute("sh", str(EXAMPLES / "audit_stack.sh"), str(page))
    assert "4 requests in" in output
    assert "Own machine against a price" in output
    assert "1 of 4 requests (25.0%) went there" in output  # France was asked twice
    assert "<svg" in page.read_text()
