"""A server process that takes its callers from a database, reached over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import SMALL, environment, running, until


def headrace(database: str, *args: str) -> Any:
    command = [sys.executable, "-m", "headrace", *args, "--database", database, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    return json.loads(done.stdout)


def test_keys_of_a_database_open_a_running_server(tiny_path: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'accounts.db'}"
    headrace(database, "tenants", "create", "acme")
    made = headrace(database, "keys", "create", "acme")
    with running(f"file:{tiny_path}", "--backend", "reference", "--database", database, *SMALL) as server:
        with openai.OpenAI(base_url=server.url + "/v1", api_key=made["key"], max_retries=0) as client:
            answer = client.completions.create(model="tiny", prompt="ab", max_tokens=2)
            assert answer.usage is not None
            assert answer.usage.completion_tokens <= 2
        wrong = made["key"][:-1] + ("a" if made["key"][-1] != "a" else "b")
        with (
            openai.OpenAI(base_url=server.url + "/v1", api_key=wrong, max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        assert server.get("/metrics").status_code == 401
        monitor = headrace(database, "keys", "create", "acme", "--role", "monitor")["key"]
        headers = {"authorization": f"Bearer {monitor}"}

        def scrape() -> str | None:
            reply = httpx.get(server.url + "/metrics", headers=headers, timeout=60, trust_env=False)
            return reply.text if reply.status_code == 200 else None

        told = until(scrape)  # the running server looks about once a second, while calls come
        assert 'headrace_door_refusals_total{code="invalid_api_key"}' in told
        assert server.stop() == 0
    secrets = [text.rpartition("-")[2] for text in (made["key"], wrong, monitor)]
    assert not [secret for secret in secrets if secret in server.log + server.invitation]
    assert "Bearer KEY" in server.invitation


def test_a_prefix_belongs_to_its_tenant_and_is_paid_for_and_what_is_refused_is_in_the_ledger(
    tiny_path: Path, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path / 'accounts.db'}"
    config = tmp_path / "headrace.toml"
    config.write_text('[gateway.prices]\n"tiny" = "1/1"\n')
    keys = {}
    for tenant in ("acme", "bolt", "poor"):
        headrace(database, "tenants", "create", tenant)
        keys[tenant] = headrace(database, "keys", "create", tenant)["key"]
    keys["other"] = headrace(database, "keys", "create", "acme", "--model", "another-model")["key"]
    headrace(database, "budgets", "set", "tenant:poor", "0.00001")
    headrace(database, "budgets", "set", "tenant:acme", "1")
    flags = ["--backend", "reference", "--database", database, "--config", str(config), *SMALL]
    prefix = "a" * 100
    with running(f"file:{tiny_path}", *flags, "--cache-rent", "full") as server:

        def post(path: str, who: str, **body: Any) -> httpx.Response:
            headers = {"authorization": f"Bearer {keys[who]}"}
            return httpx.post(server.url + path, json=body, headers=headers, trust_env=False, timeout=60)

        kept = post("/v1/prefixes", "acme", prompt=prefix)
        assert kept.status_code == 200, kept.text
        assert kept.json()["cost"] * 1e6 == pytest.approx(kept.json()["prompt_tokens"])
        assert post("/v1/prefixes", "other", prompt=prefix).status_code == 403
        refused = post("/v1/prefixes", "poor", prompt=prefix)
        assert (refused.status_code, refused.headers["x-headrace-budget-scope"]) == (402, "tenant:poor")
        found = {}
        for who in ("bolt", "acme"):
            usage = post("/v1/completions", who, prompt=prefix + "b", max_tokens=1).json()["usage"]
            found[who] = usage["prompt_tokens_details"]["cached_tokens"]
        assert found["bolt"] == 0
        assert found["acme"] > 0
        again = post("/v1/completions", "bolt", prompt=prefix + "b", max_tokens=1, stream=True)
        assert "cost" not in again.text
        path = f"{server.url}/v1/requests/{again.headers['x-request-id']}"
        asked = httpx.get(path, headers={"authorization": f"Bearer {keys['bolt']}"}, timeout=60, trust_env=False)
        assert asked.json()["usage"]["cost"] > 0
        assert server.stop() == 0
    report = headrace(database, "ledger", "report", "--by", "tenant")
    lines = {line["group"]: line for line in report["lines"]}
    assert (lines["acme"]["requests"], lines["acme"]["refused"]) == (2, 1)
    assert (lines["poor"]["requests"], lines["poor"]["refused"]) == (0, 1)
    assert report["refused"] == {"budget_exceeded": 1, "forbidden": 1}
    assert lines["bolt"]["rent_ns"] > 0  # the second found what the first had left
    assert headrace(database, "ledger", "verify")["is_right"]
