"""The command line: its grammar, its exit codes, how little `--help` costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli import main
from headrace.cli.configured import settings_from
from headrace.cli.entry import build_parser
from headrace.core.errors import ConfigError
from headrace.core.settings import setting_fields
from headrace.testing.checkpoints import write_checkpoint


def test_every_setting_has_a_flag_of_serve() -> None:
    text = build_parser().parse_args(["serve"])
    assert {leaf.key for leaf in setting_fields()} <= set(vars(text))


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[server]\nport = 1\nhost = '::1'\n[engine]\nthreads = 7\n")
    args = build_parser().parse_args(["serve", "a", "b", "--config", str(path), "--port", "2"])
    settings = settings_from(args)
    assert (settings.server.port, settings.server.host, settings.engine.threads) == (2, "::1", 7)
    assert settings.models == ("a", "b")


def test_no_model_means_the_configured_ones(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("models = ['x']\n")
    for command in ("serve", "chat", "generate", "plan"):
        args = build_parser().parse_args([command, "--config", str(path)])
        assert settings_from(args).models == ("x",), command


def test_a_wrong_flag_value_names_the_flag() -> None:
    with pytest.raises(ConfigError, match="--max-num-seqs"):
        settings_from(build_parser().parse_args(["serve", "--max-num-seqs", "0"]))


@pytest.mark.parametrize("command", ["serve", "pull", "models", "chat", "generate", "doctor", "plan"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--config FILE" in capsys.readouterr().out


def test_an_unknown_model_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["pull", "smollm-135m", "--cache-dir", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("headrace: unknown model 'smollm-135m'")
    assert "smollm2-135m" in line


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from headrace.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"numpy", "tokenizers", "starlette", "uvicorn", "rich", "httpx", "jinja2", "asyncio"}


def test_doctor_measures_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cores"] >= 1
    assert report["read_bytes_per_s"] > 1e8


def test_plan_explains_every_value(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "tiny")
    assert main(["plan", f"file:{path}", "--explain", "--backend", "reference", "--max-context", "128"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (context,) = [line.split() for line in lines if "max_context" in line]
    assert context[1:] == ["128", "engine.max_context"]


def test_known_models_are_listed_and_pulled_ones_marked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models", "--json", "--cache-dir", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["smollm2-135m"]["license"] == "Apache-2.0"
    assert rows["smollm2-135m"]["path"] is None


def test_prompts_are_continued_without_a_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "tiny")
    common = ["generate", "--model", f"file:{path}", "--backend", "reference", "--kv-memory-mib", "4"]
    sampling = ["--temperature", "0", "--max-tokens", "5", "--max-step-tokens", "16"]
    assert main([*common, *sampling, "--prompt", "a", "--prompt", "b", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["a", "b"]
    assert main([*common, *sampling, "--prompt", "a", "--stream"]) == 0
    assert capsys.readouterr().out == answers[0]["text"] + "\n"
