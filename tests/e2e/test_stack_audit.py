"""The audit of a server process that has served: its bill is the process's life at the machine's rate."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx

from headrace.econ import cost_of_time, parse_usd
from tests.e2e.conftest import SMALL, environment, running, until


def test_a_servers_life_is_audited_to_the_nano_dollar(tiny_path: Path, tmp_path: Path) -> None:
    database, page = f"sqlite:///{tmp_path / 'accounts.db'}", tmp_path / "stack.html"
    flags = ("--backend", "reference", "--database", database, "--usd-per-hour", "7.20", *SMALL)
    with running(f"file:{tiny_path}", *flags, has_brake=True) as server:
        for prompt in ("water", "water", "fire"):
            assert server.post("/v1/completions", prompt=prompt, max_tokens=5, temperature=0).status_code == 200
        away = {"model": "tiny", "prompt": "mill", "max_tokens": 400, "stream": True, "ignore_eos": True}
        with server.slowed():
            with httpx.stream("POST", server.url + "/v1/completions", json=away, timeout=60, trust_env=False) as answer:
                next(answer.iter_lines())
            until(lambda: server.metric("vllm:num_requests_running") == 0)
        assert server.stop() == 0
    command = [
        sys.executable,
        "-m",
        "headrace",
        "audit",
        "stack",
        "--database",
        database,
        "--html",
        str(page),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    found = json.loads(done.stdout)
    with sqlite3.connect(tmp_path / "accounts.db") as rows:
        (life_ns,) = rows.execute("SELECT SUM(total_ns) FROM engine_spans").fetchone()
    assert found["total_nano"] == cost_of_time(life_ns, parse_usd("7.20"))
    (line,) = found["lines"]
    assert line["configuration"]["backend"] == "reference"
    assert line["configuration"]["bits"] == 32.0
    assert line["requests"] == found["traffic"]["requests"] == 4
    assert line["fresh_nano"] > 0
    assert line["output_nano"] > 0
    assert dict(found["traffic"]["outcomes"])["abort"] == 1
    assert (found["traffic"]["streamed"], found["traffic"]["repeats"]["exact_here"]) == (1, 1)
    assert {each["what"] for each in found["latencies"]} == {"to the end", "to the first token"}
    assert "<svg" in page.read_text()
