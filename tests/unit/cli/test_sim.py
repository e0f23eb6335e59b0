"""`headrace sim`: sizes, policies and forms of the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.cli import main


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": i * 100, "input_length": 1024, "output_length": 3, "hash_ids": [i % 3, 10 + i]} for i in range(12)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_every_size_meets_every_policy(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    code = main(["sim", trace, "--shares", "60", "100", "--policies", "lru", "cost", "--json", "--html", str(page)])
    reports = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [(r["cache_share_percent"], r["policy"]) for r in reports] == [
        (60, "lru"),
        (60, "cost"),
        (100, "lru"),
        (100, "cost"),
    ]
    assert [r["completed"] for r in reports] == [12] * 4
    assert reports[2]["of_unlimited"] >= reports[0]["of_unlimited"] > 0
    assert "trace.jsonl in simulation" in page.read_text()


def test_settings_of_a_server_apply(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[engine]\nblock_size = 64\nprefix_policy = 'cost'\n")
    command = ["sim", trace, "--config", str(config), "--kv-tokens", "6400", "--requests", "2", "--rate", "2"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "blocks of 64 tokens" in out
    assert "100 blocks" in out
    assert "cost" in out
    assert "2 requests" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kv-tokens", "3"], "holds no block of 32"),
        (["--step-times", "abacus"], "'abacus' are neither known"),
        (["--rate", "0"], "above 0"),
    ],
)
def test_wrong_flags_are_one_line_and_code_2(
    trace: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", trace, *flags]) == 2
    assert message in capsys.readouterr().err
