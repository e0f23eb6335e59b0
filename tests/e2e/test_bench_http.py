"""`headrace bench http` against a server that asks for a key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headrace.bench.engine_use import EngineUse
from headrace.bench.metrics import LoadReport
from headrace.cli.entry import main
from tests.e2e.conftest import SMALL, StartServer

SHORT = ["--clients", "2", "--requests", "4", "--prompt-len", "8", "--output-len", "3", "--json"]


class _WithUse(msgspec.Struct):
    engine_use: EngineUse


def test_a_load_names_the_served_model_by_itself_and_draws_prompts_that_no_cache_has_seen(
    start_server: StartServer, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_server(str(tiny_path), *SMALL) as server:
        load = ["bench", "http", "--url", server.url, *SHORT]
        for _ in range(2):
            assert main(load) == 0
            report = msgspec.json.decode(capsys.readouterr().out, type=LoadReport)
            assert (report.completed, report.failed, report.output_tokens) == (4, 0, 12)
        assert server.metric("vllm:prefix_cache_hits_total") == 0
        for _ in range(2):
            assert main([*load, "--seed", "7"]) == 0
        assert server.metric("vllm:prefix_cache_hits_total") > 0


def test_a_load_without_the_key_says_what_the_server_answered_and_with_it_runs(
    start_server: StartServer, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_server(str(tiny_path), *SMALL, "--api-key", "sesame") as server:
        assert main(["bench", "http", "--url", server.url, *SHORT]) != 0
        assert "401" in capsys.readouterr().err
        # Long enough for the process's CPU time, which the kernel tells in hundredths of a second.
        longer = ["--clients", "2", "--requests", "8", "--prompt-len", "8", "--output-len", "200", "--json"]
        assert main(["bench", "http", "--url", server.url, "--api-key", "sesame", *longer]) == 0
        use = msgspec.json.decode(capsys.readouterr().out, type=_WithUse).engine_use
        assert 0 < use.step_share < 1
        assert 0 < use.network_cores < use.process_cores
