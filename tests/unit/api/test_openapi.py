"""The OpenAPI document as a client gets it: with a key where there are keys, and the same from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.api import SharedKey
from headrace.api.openapi import document
from headrace.cli.entry import main
from tests.unit.api.conftest import Api, MakeApi


def test_the_document_is_served_with_the_servers_own_version(api: Api) -> None:
    reply = api.call("GET", "/openapi.json")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == json.loads(json.dumps(document("1.2.3")))


def test_the_document_wants_a_key_where_there_is_one(make_api: MakeApi) -> None:
    api = make_api(gatekeeper=SharedKey("secret"))
    assert api.call("GET", "/openapi.json").status_code == 401
    assert api.call("GET", "/openapi.json", headers={"x-api-key": "secret"}).status_code == 200


def test_a_browser_is_led_to_the_document(api: Api) -> None:
    assert 'href="/openapi.json"' in api.call("GET", "/", headers={"accept": "text/html"}).text


@pytest.mark.parametrize(("flags", "path"), [([], "/v1/messages"), (["--admin"], "/admin/v1/keys")])
def test_the_command_prints_either_document(flags: list[str], path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["openapi", "--url", "https://llm.example.com", *flags]) == 0
    printed: Any = json.loads(capsys.readouterr().out)
    assert path in printed["paths"]
    assert flags or printed["servers"] == [{"url": "https://llm.example.com"}]


def test_ranges_are_those_that_requests_are_checked_with(api: Api) -> None:
    """Each bound is let through, and one step beyond it is refused."""
    properties = document("1")["components"]["schemas"]["ChatBody"]["properties"]
    for name in ("temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty", "n", "priority"):
        lowest = properties[name].get("minimum", properties[name].get("exclusiveMinimum"))
        highest = properties[name]["maximum"]
        step = 1 if isinstance(highest, int) else 0.001
        assert api.chat(max_tokens=1, **{name: highest}).status_code == 200, name
        assert api.chat(max_tokens=1, **{name: highest + step}).json()["error"]["param"] == name
        beyond = lowest if "exclusiveMinimum" in properties[name] else lowest - step
        assert api.chat(max_tokens=1, **{name: beyond}).json()["error"]["param"] == name


@pytest.mark.parametrize("name", ["attention_window", "attention_sinks", "seed", "priority", "max_tokens", "top_k"])
@pytest.mark.parametrize("value", [10**30, -(10**30)])
def test_a_number_beyond_all_bounds_is_no_defect_of_the_server(api: Api, name: str, value: int) -> None:
    assert api.chat(**{name: value}).status_code in (200, 400)
