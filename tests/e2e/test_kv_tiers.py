"""KV blocks that outlive a process, places that fail while it serves, and prompts kept before they are asked for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import main
from tests.e2e.conftest import until
from tests.redis_server import has_redis, running_redis

SMALL = ["--backend", "reference", "--kv-memory-mib", "8", "--max-num-seqs", "16", "--max-step-tokens", "64"]
PROMPT = "A headrace carries water from a stream to the wheel of a mill, and a tailrace carries it away again. " * 3


def answer(server: Any, prompt: str = PROMPT) -> tuple[str, int]:
    """The text and how many tokens of the prompt were not computed."""
    reply = server.post("/v1/completions", prompt=prompt, max_tokens=12, temperature=0).json()
    return reply["choices"][0]["text"], reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def tier(server: Any, name: str, metric: str) -> float:
    text = server.get("/metrics").text
    found = re.search(rf'^headrace_kv_tier_{metric}\{{model_name="[^"]*",tier="{name}"\}} (\S+)$', text, re.M)
    assert found, text
    return float(found.group(1))


def until_down(server: Any, name: str) -> None:
    """Wait for the place's thread to have looked whether it is there."""
    until(lambda: not tier(server, name, "up"))


# `headrace serve` that waits a minute for a place, where it would not know yet how long computing takes.
PATIENT = """
import sys
from headrace.cli import main
from headrace.kv.tiers import hierarchy

hierarchy._UNKNOWN_WAIT_S = 60.0
sys.exit(main(["serve", *sys.argv[1:], "--kv-wait-s", "60", "--port", "0"]))
"""


def test_a_restarted_server_finds_on_disk_what_the_last_one_computed(
    tiny_path: Path, start_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"file:{tiny_path}", *SMALL, "--kv-disk-dir", str(tmp_path / "kv"), "--cache-dir", str(tmp_path / "c")]
    with start_server(*arguments) as server:
        cold, num_cached = answer(server)
        assert num_cached == 0
        assert server.stop() == 0, server.log
    assert list((tmp_path / "kv").rglob("*.kv"))
    log = tmp_path / "decisions.jsonl"
    with start_server(*arguments, "--decision-log", str(log), script=PATIENT) as server:
        assert answer(server) == (cold, len(PROMPT) // 32 * 32)
        assert tier(server, "disk", "hits_total") == len(PROMPT) // 32
        searched = server.post("/v1/completions", prompt=PROMPT, max_tokens=40, use_beam_search=True, best_of=3)
        assert searched.json()["choices"][0]["text"]
        assert server.stop() == 0, server.log
    assert main(["replay", str(log)]) == 0
    assert "every decision is the same\n" in capsys.readouterr().out
    secret = tmp_path / "c" / "kv_secret"
    assert secret.stat().st_mode & 0o077 == 0
    assert secret.read_text().strip() not in server.log


def test_a_directory_that_cannot_be_written_is_told_once_and_serving_goes_on(
    tiny_path: Path, start_server: Any, tmp_path: Path
) -> None:
    (tmp_path / "kv").write_text("a file")
    with start_server(f"file:{tiny_path}", *SMALL, "--kv-disk-dir", str(tmp_path / "kv")) as server:
        until_down(server, "disk")  # before anybody asks
        assert answer(server)[0] == answer(server)[0]
        assert tier(server, "disk", "up") == 0
        assert server.stop() == 0
    assert server.log.count("KV tier 'disk' fails (File exists); serving goes on without it, retrying") == 1
    assert "Traceback" not in server.log


def test_damaged_blocks_on_disk_cost_time_and_never_an_answer(
    tiny_path: Path, start_server: Any, tmp_path: Path
) -> None:
    arguments = [f"file:{tiny_path}", *SMALL, "--kv-disk-dir", str(tmp_path / "kv"), "--cache-dir", str(tmp_path / "c")]
    prompts = [f"{number}{PROMPT}" for number in range(3)]
    with start_server(*arguments) as server:
        cold = [answer(server, prompt)[0] for prompt in prompts]
        assert server.stop() == 0, server.log
    for number, file in enumerate(sorted((tmp_path / "kv").rglob("*.kv"))):
        frame = bytearray(file.read_bytes())
        frame[len(frame) // 2] ^= 1
        file.write_bytes((frame, frame[:100], b"")[number % 3])
    with start_server(*arguments, script=PATIENT) as server:
        assert [answer(server, prompt)[0] for prompt in prompts] == cold
        assert tier(server, "disk", "corrupt_total") > 0
        assert tier(server, "disk", "hits_total") == 0
        assert server.get("/health/ready").json() == {"state": "ready"}
        assert server.stop() == 0, server.log


# A server whose disk does not answer for as long as there is no file of the name that it is given.
HANGING_DISK = """
import sys, time
from functools import partial
from pathlib import Path
from headrace.app import serving
from headrace.cli.progress import pull_with_bar
from headrace.core.settings import load
from headrace.kv.transfer import DiskTransport

has = DiskTransport.has

def hanging(self, keys):
    while not Path(sys.argv[3]).exists():
        time.sleep(0.01)
    return has(self, keys)

DiskTransport.has = hanging
settings = load(overrides={"models": [sys.argv[1]], "server.port": 0, "engine.kv_memory_mib": 8,
                           "engine.backend": "reference", "engine.max_step_tokens": 64, "engine.kv_wait_s": 0.2,
                           "engine.kv_disk_dir": sys.argv[2], "cache_dir": sys.argv[2] + ".c", "health.stall_s": 1})
sys.exit(serving.serve(settings, partial(pull_with_bar, settings)))
"""


def test_a_disk_that_hangs_is_named_while_it_does(tiny_path: Path, start_server: Any, tmp_path: Path) -> None:
    release = tmp_path / "go"
    arguments = [f"file:{tiny_path}", str(tmp_path / "kv"), str(release)]
    with start_server(*arguments, script=HANGING_DISK) as server:
        until_down(server, "disk")  # before anybody asks
        told = server.get("/health/ready")
        assert (told.status_code, told.json()["state"]) == (200, "degraded")
        assert "KV tier 'disk' has not answered for" in told.json()["reason"]
        (place,) = server.get("/health/progress").json()["models"]["tiny"]["places_down"]
        assert (place["name"], place["silent_s"] > 0.2) == ("disk", True)
        assert tier(server, "disk", "silent_seconds") > 0.2
        cold, _ = answer(server)
        warning = "KV tier 'disk' has not answered for"
        until(lambda: warning in server.log)  # the watchdog looks by itself
        assert server.log.count(warning) == 1
        release.touch()
        # It is tried again, though nobody asks for anything.
        until(lambda: server.get("/health/ready").json()["state"] == "ready")
        assert answer(server)[0] == cold
        assert server.stop() == 0, server.log


@pytest.mark.skipif(not has_redis(), reason="no redis-server here; on Debian: apt-get install redis-server")
def test_redis_that_is_down_or_killed_costs_time_and_never_an_answer(
    tiny_path: Path, start_server: Any, tmp_path: Path
) -> None:
    with running_redis() as redis:
        arguments = [f"file:{tiny_path}", *SMALL, "--kv-redis-url", redis.url, "--cache-dir", str(tmp_path)]
        with start_server(*arguments) as server:
            cold, _ = answer(server)
            assert server.stop() == 0, server.log
        with start_server(*arguments, script=PATIENT) as server:
            assert answer(server) == (cold, len(PROMPT) // 32 * 32)
            assert tier(server, "redis", "hits_total") == len(PROMPT) // 32
            redis.kill()
            assert answer(server, "x" + PROMPT)[1] == 0
            until_down(server, "redis")
            assert answer(server)[0] == cold
            assert server.stop() == 0, server.log
        with start_server(*arguments) as server:
            until_down(server, "redis")  # before anybody asks
            told = server.get("/health/ready")
            assert (told.status_code, told.json()["state"]) == (200, "degraded")
            assert "KV tier 'redis' fails" in told.json()["reason"]
            assert answer(server) == (cold, 0)
            assert tier(server, "redis", "errors_total") > 0
            assert server.stop() == 0, server.log
        assert "Traceback" not in server.log


def write(file: Path, body: dict[str, Any]) -> None:
    file.write_text(json.dumps(body) + "\n")


def test_prompts_are_kept_before_they_are_asked_for(tiny_path: Path, start_server: Any, tmp_path: Path) -> None:
    file = tmp_path / "warm.jsonl"
    write(file, {"messages": [{"role": "system", "content": PROMPT}]})
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": "hello"}]
    with start_server(f"file:{tiny_path}", *SMALL, "--warm", str(file)) as server:
        assert server.metric("headrace_pinned_blocks") >= len(PROMPT) // 32
        usage = server.post("/v1/chat/completions", messages=messages, max_tokens=2).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= len(PROMPT) // 32 * 32
        write(file, {"prompt": "y" * 100})
        command = [sys.executable, "-m", "headrace", "warm", str(file), "--url", server.url, "--ttl-s", "60"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "kept 101 tokens, 0 of them were there" in done.stdout
        assert answer(server, "y" * 100 + "z")[1] == 96
        write(file, {"prompt": "y" * 9000})
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 1
        assert "shorten it" in refused.stderr


def test_a_url_that_is_none_ends_the_start_with_2_and_is_not_shown(tiny_path: Path) -> None:
    command = [sys.executable, "-m", "headrace", "serve", f"file:{tiny_path}", "--port", "0", *SMALL]
    command += ["--kv-redis-url", "http://u:hunter2@h"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "not a Redis URL" in done.stderr
    assert "hunter2" not in done.stderr
