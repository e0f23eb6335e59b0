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

from tests.e2e.conftest import SMALL, environment, running


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
        for _ in range(200):  # the running server looks about once a second, while calls come
            reply = httpx.get(server.url + "/metrics", headers={"authorization": f"Bearer {monitor}"}, trust_env=False)
            if reply.status_code == 200:
                break
        else:
            pytest.fail("the server did not notice the new key")
        assert 'headrace_door_refusals_total{code="invalid_api_key"}' in reply.text
        assert server.stop() == 0
    secrets = [text.rpartition("-")[2] for text in (made["key"], wrong, monitor)]
    assert not [secret for secret in secrets if secret in server.log + server.invitation]
    assert "Bearer KEY" in server.invitation
