"""Two Headrace processes in a chain, both with prices: what the back charges the front is in the front's ledger."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.conftest import SMALL, environment, running
from tests.e2e.test_accounts import headrace

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 4, "temperature": 0}


def test_what_the_server_behind_charges_is_in_the_ledger_of_the_one_in_front(tiny_path: Path, tmp_path: Path) -> None:
    behind, before = (f"sqlite:///{tmp_path / name}.db" for name in ("behind", "before"))
    headrace(behind, "tenants", "create", "front")
    headrace(before, "tenants", "create", "acme")
    (tmp_path / "key").write_text(headrace(behind, "keys", "create", "front")["key"])
    key, monitor = (headrace(before, "keys", "create", "acme", "--role", role)["key"] for role in ("user", "monitor"))
    watching = {"authorization": f"Bearer {monitor}"}
    prices = tmp_path / "behind.toml"
    prices.write_text('[gateway.prices]\n"tiny" = "2/8"\n')
    flags = ["--backend", "reference", "--database", behind, "--config", str(prices), *SMALL]
    with running(f"file:{tiny_path}", *flags) as back:
        config = tmp_path / "before.toml"
        config.write_text(
            "".join(
                f'[upstreams.{model}]\nurl = "{back.url}"\nmodels = {{ {model} = "tiny" }}\n'
                f'api_key = "file:{tmp_path / "key"}"\nprofile = "{profile}"\nreported_cost = "{trust}"\n'
                for model, profile, trust in (
                    ("noted", "headrace", "note"),
                    ("charged", "headrace", "charge"),
                    ("messages", "anthropic", "note"),
                    ("ignored", "headrace", "ignore"),
                )
            )
            + '[gateway.prices]\n"noted" = "1/4"\n"ignored" = "1/4"\n'
        )
        with running("--config", str(config), "--database", before) as front:
            headers = {"authorization": f"Bearer {key}"}
            costs: dict[str, set[float | None]] = {}
            with httpx.Client(base_url=front.url, headers=headers, timeout=60, trust_env=False) as client:
                for model in ("noted", "charged", "messages", "ignored"):
                    whole = client.post("/v1/chat/completions", json={"model": model, **ASK})
                    assert whole.status_code == 200, whole.text
                    streaming = {"model": model, "stream": True, "stream_options": {"include_usage": True}, **ASK}
                    events = client.post("/v1/chat/completions", json=streaming).text
                    usage = whole.json()["usage"]
                    costs[model] = {usage.get("cost")}
                    last = json.loads(events.split("data: ")[-2])["usage"]
                    assert last.get("cost") == usage.get("cost")
                    assert whole.headers.get("x-headrace-upstream") == model
            reported = 2e-6 * usage["prompt_tokens"] + 8e-6 * 4
            assert costs["noted"] == costs["ignored"] == {round(reported / 2, 9)}
            assert costs["charged"] == {round(reported, 9)}
            assert costs["messages"] == {None}
            text = httpx.get(front.url + "/metrics", headers=watching, timeout=60, trust_env=False).text
            found = dict(re.findall(r'^headrace_upstream_reported_usd_total\{upstream="(\w+)"\} (\S+)$', text, re.M))
            totals = {model: round(float(usd) * 1e9) for model, usd in found.items()}
            assert totals == {**dict.fromkeys(("noted", "charged", "messages"), round(reported * 2e9)), "ignored": 0}
            assert front.stop() == 0
        assert back.stop() == 0
    nano = round(2 * reported * 1e9)
    lines = {line["group"]: line for line in headrace(before, "ledger", "report", "--by", "model")["lines"]}
    told = ("charged_nano", "unpriced", "reported", "reported_nano", "compared_nano", "priced_nano")
    assert {model: tuple(line[name] for name in told) for model, line in lines.items()} == {
        "noted": (nano // 2, 0, 2, nano, nano, nano // 2),
        "charged": (nano, 0, 2, nano, 0, 0),
        "messages": (0, 2, 2, nano, 0, 0),
        "ignored": (nano // 2, 0, 0, 0, 0, 0),
    }
    with closing(sqlite3.connect(tmp_path / "behind.db")) as rows:
        assert rows.execute("SELECT SUM(cost_nano) FROM settlements").fetchone() == (4 * nano,)
    table = subprocess.run(
        [sys.executable, "-m", "headrace", "ledger", "report", "--by", "model", "--database", before],
        capture_output=True, text=True, check=True, env=environment(),
    ).stdout  # fmt: skip
    assert "reported $" in table
    assert "for 6 requests; where the price is known" in table
    assert "(+100.0%)" in table
