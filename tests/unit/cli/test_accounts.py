"""`headrace tenants` and `headrace keys` on a SQLite file, as a person would type them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import main
from headrace.cli.accounts import moment, seconds
from headrace.core.errors import ConfigError
from headrace.gateway.identity.secrets import parse


@pytest.fixture
def headrace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; return exit code, output and errors."""

    def run(*args: str) -> tuple[int, str, str]:
        code = main([*args, "--database", f"sqlite:///{tmp_path / 'a.db'}"])
        return (code, *capsys.readouterr())

    return run


def test_a_key_is_made_listed_rotated_and_revoked(headrace: Any) -> None:
    assert headrace("tenants", "create", "acme", "--name", "Acme")[0] == 0
    code, out, _ = headrace("keys", "create", "acme", "--model", "a", "--model", "b", "--expires", "90d", "--json")
    made = json.loads(out)
    assert (code, made["tenant"], made["role"], made["models"]) == (0, "acme", "user", ["a", "b"])
    assert parse(made["key"]) is not None
    code, out, _ = headrace("keys", "list")
    assert made["id"] in out
    assert made["key"] not in out
    code, out, _ = headrace("keys", "rotate", made["id"], "--grace", "24h")
    assert parse(out.splitlines()[-1]) is not None
    assert "secret before too until" in headrace("keys", "list", "--tenant", "acme")[1]
    assert "revoked" in headrace("keys", "revoke", made["id"])[1]
    assert json.loads(headrace("keys", "list", "--json")[1])[0]["revoked_s"] is not None


def test_a_tenant_is_disabled_and_enabled(headrace: Any) -> None:
    headrace("tenants", "create", "acme")
    assert "disabled" in headrace("tenants", "disable", "acme")[1]
    assert "works" in headrace("tenants", "enable", "acme")[1]
    assert [tenant["id"] for tenant in json.loads(headrace("tenants", "list", "--json")[1])] == ["acme"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["keys", "create", "nobody"], "no tenant 'nobody'"),
        (["keys", "revoke", "nokey"], "no key 'nokey'"),
        (["tenants", "create", "A B"], "tenant id 'A B'"),
        (["keys", "create", "x", "--expires", "soon"], "'soon' is no time"),
    ],
)
def test_what_does_not_fit_is_one_line_and_code_2(headrace: Any, args: list[str], said: str) -> None:
    code, out, err = headrace(*args)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert said in line


def test_without_a_database_the_commands_say_how_to_set_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tenants", "list"]) == 2
    assert "HEADRACE_DATABASE" in capsys.readouterr().err


def test_times_are_lengths_or_dates() -> None:
    assert [seconds(text) for text in ("30s", "15m", "24h", "90d", "2w")] == [30, 900, 86400, 7776000, 1209600]
    assert moment("2100-01-02") == 4102531200
    assert 86390 < moment("1d") - time.time() < 86410
    with pytest.raises(ConfigError, match="90d"):
        seconds("3 days")


def test_limits_are_set_changed_and_removed(headrace: Any) -> None:
    headrace("tenants", "create", "acme")
    code, out, _ = headrace("limits", "set", "tenant:acme", "tokens", "1000", "--per", "hour", "--json")
    made = json.loads(out)
    assert (code, made["what"], made["per"], made["amount"]) == (0, "tokens", "hour", 1000)
    assert "2,000" in headrace("limits", "set", "tenant:acme", "tokens", "2000", "--per", "hour")[1]
    assert [rule["id"] for rule in json.loads(headrace("limits", "list", "--json")[1])] == [made["id"]]
    assert headrace("limits", "remove", made["id"])[0] == 0
    assert json.loads(headrace("limits", "list", "--json")[1]) == []


def test_budgets_are_set_shown_reset_and_removed(headrace: Any) -> None:
    args = ("budgets", "set", "all", "12.5", "--period", "day", "--timezone", "Europe/London", "--warn-at", "10")
    made = json.loads(headrace(*args, "--json")[1])
    assert (made["limit_nano"], made["soft_nano"], made["is_hard"]) == (12_500_000_000, 10_000_000_000, True)
    shown = headrace("budgets", "list")[1]
    assert "12.50" in shown
    assert "Europe/London" in shown
    assert headrace("budgets", "show", made["id"])[0] == 0
    assert json.loads(headrace("budgets", "reset", made["id"], "--json")[1])["epoch"] == 1
    assert (
        json.loads(headrace("budgets", "set", "all", "1", "--period", "day", "--soft", "--json")[1])["is_hard"] is False
    )
    assert headrace("budgets", "remove", made["id"])[0] == 0
    code, _, err = headrace("budgets", "show", made["id"])
    assert (code, "no budget" in err) == (2, True)
    assert "'lots'" in headrace("budgets", "set", "all", "lots")[2]
