"""`headrace audit` on a SQLite file, as a person would type it."""

from __future__ import annotations

import json
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
def headrace(path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; return exit code, output and errors."""

    def run(*args: str) -> tuple[int, str, str]:
        code = main([*args, "--database", f"sqlite:///{path}"])
        return (code, *capsys.readouterr())

    return run


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)
        connection.commit()


def test_commands_that_change_something_are_in_the_log(headrace: Any) -> None:
    headrace("tenants", "create", "acme")
    key = json.loads(headrace("keys", "create", "acme", "--json")[1])
    headrace("limits", "set", "tenant:acme", "requests", "5", "--per", "minute")
    headrace("budgets", "set", "tenant:acme", "1")
    rows = [json.loads(line) for line in headrace("audit", "export", "-")[1].splitlines()]
    assert [row["action"] for row in rows] == ["tenant.create", "key.create", "limit.set", "budget.set"]
    assert {row["actor"].split("/")[0] for row in rows} == {"cli"}
    assert rows[1]["target"] == key["id"]
    assert key["key"].rpartition("-")[2] not in json.dumps(rows)
    code, out, _ = headrace("audit", "verify")
    assert (code, "4 rows of the audit log are whole" in out) == (0, True)


def test_verify_names_the_first_wrong_row_and_ends_with_1(headrace: Any, path: Path) -> None:
    for name in ("a", "b", "c"):
        headrace("tenants", "create", name)
    change(path, "UPDATE audit_rows SET body = REPLACE(body, '\"b\"', '\"x\"') WHERE seq = 2")
    code, out, err = headrace("audit", "verify")
    assert (code, out) == (1, "")
    assert "row 2 was changed" in err
    assert json.loads(headrace("audit", "verify", "--json")[1])["seq"] == 2


def test_an_anchor_kept_elsewhere_finds_a_shorter_log(headrace: Any, path: Path, tmp_path: Path) -> None:
    headrace("tenants", "create", "a")
    anchors = tmp_path / "anchors"
    headrace("audit", "anchor", str(anchors))
    assert json.loads(headrace("audit", "anchor")[1])["seq"] == 1
    headrace("tenants", "create", "b")
    assert headrace("audit", "verify", "--anchors", str(anchors))[0] == 0
    change(path, "DELETE FROM audit_rows")
    change(path, "UPDATE audit_head SET seq = 0, digest = '', seal = ''")
    assert headrace("audit", "verify")[0] == 0
    assert "cut off" in headrace("audit", "verify", "--anchors", str(anchors))[2]
    anchors.write_text("nothing\n")
    assert headrace("audit", "verify", "--anchors", str(anchors))[0] == 2


def test_a_key_seals_the_log_and_is_needed_from_then_on(
    headrace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "audit.key"
    assert main(["audit", "key", "new", str(file)]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main(["audit", "key", "new", str(file)]) == 2
    assert main(["audit", "key", "new"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("hra-")
    headrace("tenants", "create", "a")
    monkeypatch.setenv("HEADRACE_AUDIT__KEY", f"file:{file}")
    headrace("tenants", "create", "b")
    assert "sealed from row 2 on" in headrace("audit", "verify")[1]
    monkeypatch.delenv("HEADRACE_AUDIT__KEY")
    code, _, err = headrace("tenants", "create", "c")
    assert (code, "audit.key" in err) == (2, True)
    assert "was not given" in headrace("audit", "verify")[2]
    monkeypatch.setenv("HEADRACE_AUDIT__OLD_KEYS", f"file:{file}")
    assert headrace("audit", "verify")[0] == 0
    assert [tenant["id"] for tenant in json.loads(headrace("tenants", "list", "--json")[1])] == ["a", "b"]


def test_holds_are_placed_listed_and_released(headrace: Any) -> None:
    headrace("tenants", "create", "c")
    code, out, _ = headrace("audit", "hold", "--tenant", "acme", "--note", "case 7", "--json")
    placed = json.loads(out)
    assert (code, placed["note"]) == (0, "case 7")
    assert "tenant:acme" in headrace("audit", "holds")[1]
    assert "0 rows older than 365 days" in headrace("audit", "prune")[1]
    assert headrace("audit", "release", placed["id"])[0] == 0
    assert headrace("audit", "release", placed["id"])[0] == 2
    assert headrace("audit", "hold")[0] == 2
    shown = headrace("audit", "show", "--rows", "2")[1]
    assert "hold tenant:acme" in " ".join(shown.split())
    assert "release tenant:acme" in " ".join(shown.split())
    assert "tenant.create" not in shown


def test_rows_are_filtered(headrace: Any) -> None:
    headrace("tenants", "create", "a")
    for flags, count in (
        (("--kind", "change"), 1),
        (("--kind", "call"), 0),
        (("--since", "2100-01-01"), 0),
        (("--until", "2020-01-01"), 0),
        (("--by-key", "x"), 0),
    ):
        assert len(json.loads(headrace("audit", "show", "--json", *flags)[1])) == count
    for wrong in (("--since", "soon"), ("--since", "2026-01-02", "--until", "2026-01-01"), ("--rows", "0")):
        assert headrace("audit", "show", *wrong)[0] == 2
