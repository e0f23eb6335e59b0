"""`headrace audit stack`: what is read, what is shown, and what bad input gets."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import main
from headrace.core.settings import GatewaySettings
from tests.unit.gateway.ledger.test_ledger import books, load


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ledger of a small engine that served thirty requests of two tenants, a fourth of them left early."""
    url = f"sqlite:///{tmp_path_factory.mktemp('stack') / 'accounts.db'}"

    async def serve() -> None:
        settings = GatewaySettings(prices={"m": "0.10/0.40/0.01"}, usd_per_hour="3.30")
        async with books(url, settings) as found:
            await load(found, 30)

    asyncio.run(serve())
    return url


@pytest.fixture
def audit(database: str, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*flags: str) -> tuple[int, str, str]:
        code = main(["audit", "stack", "--database", database, *flags])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_the_terminal_the_page_and_the_document_have_the_same_figures(audit: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, text, _ = audit("--against", "0.10/0.40/0.01", "--html", str(page))
    assert code == 0
    document = json.loads(audit("--json", "--against", "0.10/0.40/0.01")[1])
    html = page.read_text()
    (line,) = document["lines"]
    rate = line["usd_per_mtok"]["with_idle"]
    shown = f"{rate:,.2f}" if rate >= 1 else f"{rate:,.4f}"
    for where in (text, html):
        assert shown in where
        assert "Own machine against a price" in where
        assert "Provisioned against computing" in where
        assert "What makes slow requests slow" in where
    assert line["total_nano"] == line["used_nano"] + line["pool_nano"] == document["total_nano"]
    assert sum(share["requests"] for share in document["traffic"]["tenants"]) == 30
    assert 0 < document["provisions"][0]["utilization"] < 1


def test_the_page_is_whole_by_itself_and_its_figures_are_within_their_frame(audit: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    audit("--against", "0.10/0.40", "--html", str(page))
    html = page.read_text()
    assert not re.findall(r"<script|<link|src=|href=|url\(", html)
    assert html.count("<svg") == html.count("</svg>") > 5
    widths = [float(x) + float(w) for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', html)]
    assert max(widths) <= 440.5


def test_a_tenants_part_is_less_than_the_whole_and_says_so(audit: Any) -> None:
    whole, one, other = (json.loads(audit("--json", *flags)[1]) for flags in ((), ("--tenant", "a"), ("--tenant", "b")))
    assert abs(one["total_nano"] + other["total_nano"] - whole["total_nano"]) <= 100
    assert one["total_nano"] < whole["total_nano"]
    assert any("Only some requests" in caveat for caveat in one["caveats"])
    assert one["improvements"] == [each for each in one["improvements"] if "machine" not in each["title"]]


def test_a_model_may_be_looked_at_alone(audit: Any) -> None:
    assert json.loads(audit("--json", "--model", "m")[1])["total_nano"] == json.loads(audit("--json")[1])["total_nano"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tenant", "nobody"], "no tenant 'nobody'; it knows 'a', 'b'"),
        (["--model", "mm"], "no model 'mm'; did you mean 'm'?"),
        (["--since", "2026-05-02", "--until", "2026-05-01"], "--since 2026-05-02 is not before --until 2026-05-01"),
        (["--since", "yesterday"], "write a day such as 2027-01-31"),
        (["--since", "2020-01-01", "--until", "2020-01-31"], "no records from 2020-01-01 until 2020-02-01"),
        (["--against", "cheap"], "--against 'cheap' is no price"),
        (["--against", "1/x"], "write dollars per million tokens as INPUT/OUTPUT"),
        (["--against", "book:a/b"], "names no price book"),
        (["--fits", "none", "none"], "step times 'none' are neither known"),
        (["--html", "/nowhere/page.html"], "--html /nowhere/page.html cannot be written"),
    ],
)
def test_bad_input_gets_one_line_that_says_what_to_do(audit: Any, flags: list[str], words: str) -> None:
    code, out, err = audit(*flags)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_ledger_without_records_says_how_to_get_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["audit", "stack", "--database", f"sqlite:///{tmp_path / 'new.db'}"])
    assert code == 2
    assert "serve requests with this database first" in capsys.readouterr().err


def test_step_times_of_another_configuration_are_taken_by_name(audit: Any) -> None:
    code, text, _ = audit("--fits", "smollm2-135m-2-cores", "llama-8b-h100")
    assert code == 0
    assert "measured" in text
