"""The life of a server process: its start, its end, what it costs when nobody asks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import until

SMALL = ["--backend", "reference", "--kv-memory-mib", "8", "--max-num-seqs", "16", "--max-step-tokens", "64"]

# A server whose executor does PLACE at the first step that is no warm-up.
SABOTAGED = """
import sys, threading
from functools import partial
from headrace.app import backends, serving
from headrace.cli.progress import pull_with_bar
from headrace.core.settings import load

real = backends.open_executor

def open_failing(*args, **kwargs):
    executor = real(*args, **kwargs)
    launch = executor.launch
    def failing(step):
        if not step.is_dry_run:
            PLACE
        return launch(step)
    executor.launch = failing
    return executor

backends.open_executor = open_failing
settings = load(overrides={"models": [sys.argv[1]], "server.port": 0, "engine.kv_memory_mib": 8,
                           "engine.backend": "reference", "engine.max_step_tokens": 64,
                           "health.stall_s": 0.5, "health.stall_exit_s": 0.5})
sys.exit(serving.serve(settings, partial(pull_with_bar, settings)))
"""
FAILING = SABOTAGED.replace("PLACE", 'raise RuntimeError("device lost")')
HANGING = SABOTAGED.replace("PLACE", "threading.Event().wait()")
COLD = HANGING.replace("not step.is_dry_run", "step.is_dry_run").replace(
    '"health.s', '"health.warm_up_s": 0.2, "health.s', 1
)

# A server that finds its model only once it reads a line, and tells its port at once.
SLOW = """
import sys
from functools import partial
from headrace.app import serving
from headrace.cli.progress import pull_with_bar
from headrace.core.settings import load

bind = serving.bind

def telling(*args, **kwargs):
    sock = bind(*args, **kwargs)
    print(serving.url_of(sock), flush=True)
    return sock

def find(name, progress):
    progress(1, 4, "a file")
    sys.stdin.readline()
    return pull_with_bar(settings, name, progress)

serving.bind = telling
settings = load(overrides={"models": [sys.argv[1]], "server.port": 0, "engine.kv_memory_mib": 8,
                           "engine.backend": "reference", "engine.max_step_tokens": 64})
sys.exit(serving.serve(settings, find))
"""


def headrace(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace", *args], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads so far, from the scheduler's own clock (ns); those that have ended are left out."""
    spent_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            spent_ns += int((task / "schedstat").read_text().split()[0])
    return spent_ns / 1e9


def test_the_invitation_works_as_it_stands(tiny: Any) -> None:
    command = tiny.invitation.partition(" · ")[2]
    reply = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert '"finish_reason":"' in reply.stdout


def test_the_start_is_told_phase_by_phase(tiny: Any) -> None:
    until(lambda: all(f" {phase} " in tiny.log for phase in ("resolve", "load", "warm", "ready")))


def test_an_idle_server_uses_no_cpu(tiny: Any) -> None:
    tiny.get("/health")

    def rests() -> bool:
        """Whether it took two percent of one core; the look of a watchdog on a cold machine may take more, once."""
        before = cpu_seconds(tiny.process.pid)
        time.sleep(1.0)
        return cpu_seconds(tiny.process.pid) - before < 0.02

    assert any(rests() for _ in range(10))


def test_a_stopping_server_ends_its_answers_first(tiny_path: Path, start_server: Any) -> None:
    body = {"prompt": "go on", "max_tokens": 200, "stream": True, "ignore_eos": True, "temperature": 0}
    with start_server(f"file:{tiny_path}", *SMALL) as server:
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60, trust_env=False) as response:
            lines = response.iter_lines()
            first = next(lines)
            server.process.send_signal(signal.SIGTERM)
            told = [line for line in (first, *lines) if line]
        assert told[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in told[-2]
        assert server.wait() == 0


def test_a_stopping_server_tells_newcomers_when_to_come_back(tiny_path: Path, start_server: Any) -> None:
    body = {"prompt": "go on", "max_tokens": 400, "stream": True, "ignore_eos": True, "temperature": 0}
    headers = {"x-resume-grace": "20", "x-request-id": "mine"}
    with start_server(f"file:{tiny_path}", *SMALL, "--drain-s", "120", has_brake=True) as server:
        url = server.url + "/v1/completions"
        with (
            server.slowed() as released,
            httpx.stream("POST", url, json=body, headers=headers, timeout=60, trust_env=False) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.get("/health/ready").status_code != 200)
            assert server.get("/health/ready").json()["state"] == "draining"
            for path in ("/v1/completions", "/v1/prefixes"):
                refused = server.post(path, prompt="late")
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")
                assert int(refused.headers["retry-after"]) > 0
            released()
            again = server.get("/v1/requests/mine/events")
            assert again.text.rstrip().endswith("data: [DONE]")
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.wait() == 0


def test_answers_that_outlast_the_drain_are_cut_off_and_told_why(tiny_path: Path, start_server: Any) -> None:
    body = {"prompt": "go on", "max_tokens": 500, "stream": True, "ignore_eos": True}
    with start_server(f"file:{tiny_path}", *SMALL, "--drain-s", "0", has_brake=True) as server:
        with (
            server.slowed(),
            httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60, trust_env=False) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            told = [line for line in lines if line]
        assert '"code":"server_draining"' in told[-1]
        assert not any("[DONE]" in line for line in told)
        assert server.wait() == 0


def test_a_dead_engine_ends_the_process_with_1(tiny_path: Path, start_server: Any) -> None:
    with start_server(f"file:{tiny_path}", script=FAILING) as server:
        reply = server.post("/v1/completions", prompt="a")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_dead")
        assert int(reply.headers["retry-after"]) > 0
        assert "device lost" in reply.json()["error"]["message"]
        assert server.wait() == 1
        assert "device lost" in server.log


def test_a_hanging_engine_is_named_answered_for_and_ends_the_process_with_1(tiny_path: Path, start_server: Any) -> None:
    with start_server(f"file:{tiny_path}", script=HANGING) as server:
        headers = {"x-request-id": "the-stuck-one"}
        reply = httpx.post(
            server.url + "/v1/completions", json={"prompt": "a"}, headers=headers, timeout=60, trust_env=False
        )
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_dead")
        assert "no step has ended" in reply.json()["error"]["message"]
        assert server.wait() == 1
        (stalled,) = [line for line in server.log.splitlines() if "is stalled" in line]
        assert "the-stuck-one" in stalled
        assert "'execute'" in stalled
        assert "the process ends" in server.log


def test_a_warm_up_that_hangs_ends_the_process_with_1(tiny_path: Path) -> None:
    command = [sys.executable, "-c", COLD, f"file:{tiny_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")
    (last,) = [line for line in ended.stderr.splitlines() if "the process ends" in line]
    assert "model 'tiny'" in last
    assert "raise health.warm_up_s" in last


def test_a_server_answers_for_itself_while_it_loads(tiny_path: Path, start_server: Any) -> None:
    with start_server(f"file:{tiny_path}", script=SLOW) as server:
        assert server.get("/health/live").status_code == 200
        until(lambda: server.get("/health/ready").json()["start"]["done"])
        ready = server.get("/health/ready")
        assert ready.status_code == 503
        told = ready.json()
        assert (told["state"], told["start"]["phase"], told["start"]["done"]) == ("starting", "pull", 0.25)
        refused = server.post("/v1/completions", prompt="a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
        server.process.stdin.write("go\n")
        server.process.stdin.flush()
        assert server.process.stdout.readline().startswith("Serving tiny at")
        assert server.get("/health/ready").json() == {"state": "ready"}
        progress = server.get("/health/progress").json()["models"]["tiny"]
        assert (progress["state"], progress["running"], progress["stuck"]) == ("ready", 0, [])
        assert server.stop() == 0


def test_a_server_that_is_interrupted_while_it_loads_ends_at_once(tiny_path: Path, start_server: Any) -> None:
    with start_server(f"file:{tiny_path}", script=SLOW) as server:
        assert server.get("/health/live").status_code == 200
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 130


def test_a_taken_port_ends_the_start_with_2(tiny: Any, tiny_path: Path) -> None:
    port = tiny.url.rpartition(":")[2]
    done = headrace("serve", f"file:{tiny_path}", "--port", port)
    assert done.returncode == 2
    assert f":{port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["serve", "--host", "0.0.0.0"], "api_key"),
        (["serve", "smolm2-135m", "--port", "0"], "smollm2-135m"),
        (["serve", "--port", "many"], "server.port"),
        (["serve", "smollm2-135m", "smollm2-135m", "--port", "0", "--kv-memory-mib", "64"], "two models"),
        (["serve", "--kv-memory-mib", "99999999", "--port", "0"], "MiB are available"),
        (["serve", "--backend", "gpu"], "engine.backend"),
        (["generate", "--model", "file:/nowhere/at/all", "--prompt", "x"], "nowhere"),
        (["chat", "--url", "http://127.0.0.1:9"], "no answer from"),
    ],
)
def test_wrong_usage_is_one_line(args: list[str], said: str) -> None:
    done = headrace(*args)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("headrace: ")]) == 1


def test_a_key_is_asked_for(tiny_path: Path, start_server: Any) -> None:
    with start_server(f"file:{tiny_path}", *SMALL, "--api-key", "k3y") as server:
        assert server.get("/v1/models").status_code == 401
        assert server.get("/health").status_code == 200
        done = headrace("chat", "--url", server.url, "--api-key", "k3y", "--max-tokens", "4", stdin="hello\n/exit\n")
        assert done.returncode == 0, done.stderr
        assert "k3y" not in server.log


def test_two_models_are_served_side_by_side(tiny_path: Path, start_server: Any, tmp_path: Path) -> None:
    from headrace.testing.checkpoints import write_checkpoint

    other = write_checkpoint(tmp_path / "other", "qwen3")
    with start_server(f"file:{tiny_path}", f"file:{other}", *SMALL) as server:
        assert [card["id"] for card in server.get("/v1/models").json()["data"]] == ["tiny", "other"]
        replies = {
            name: server.post("/v1/completions", model=name, prompt="a", temperature=0).json()
            for name in ("tiny", "other")
        }
        assert {name: reply["model"] for name, reply in replies.items()} == {"tiny": "tiny", "other": "other"}
        assert replies["tiny"]["choices"][0]["text"] != replies["other"]["choices"][0]["text"]


def test_a_stream_that_a_swap_cuts_off_ends_in_an_error_that_says_so(
    tiny_path: Path, start_server: Any, tmp_path: Path
) -> None:
    from headrace.testing.checkpoints import write_checkpoint

    other = write_checkpoint(tmp_path / "other", seed=5)
    body = {"prompt": "go on", "max_tokens": 400, "stream": True, "ignore_eos": True, "temperature": 0}
    with start_server(f"file:{tiny_path}", *SMALL, has_brake=True) as server:
        with (
            server.slowed(),
            httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60, trust_env=False) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            swapped = server.post("/admin/models/tiny/swap", source=f"file:{other}", drain_s=0)
            assert (swapped.status_code, swapped.json()["num_finishing"]) == (200, 1)
            told = [line for line in lines if line]
        assert '"code":"weights_swapped"' in told[-1]
        assert "the weights of 'tiny' were swapped" in told[-1]
        assert server.post("/v1/completions", prompt="a", max_tokens=2).status_code == 200
        assert server.stop() == 0


def test_the_weights_of_a_running_server_are_swapped(tiny_path: Path, start_server: Any, tmp_path: Path) -> None:
    from headrace.testing.checkpoints import write_checkpoint

    other = write_checkpoint(tmp_path / "other", seed=5)
    with start_server(f"file:{tiny_path}", *SMALL) as server:
        body = {"prompt": "a", "temperature": 0, "max_tokens": 8}
        before = server.post("/v1/completions", **body).json()
        done = headrace("swap", "tiny", f"file:{other}", "--url", server.url, "--wait-s", "0")
        assert done.returncode == 0, done.stderr
        assert before["system_fingerprint"] in done.stdout
        after = server.post("/v1/completions", **body).json()
        assert after["model"] == "tiny"
        assert after["system_fingerprint"] != before["system_fingerprint"]
        assert after["choices"][0]["text"] != before["choices"][0]["text"]
        refused = headrace("swap", "tiny", "file:/nowhere/at/all", "--url", server.url)
        assert refused.returncode == 1
        assert "keeps its weights" in refused.stderr
        assert server.get("/health/ready").json() == {"state": "ready"}
        assert server.stop() == 0
