"""The public API under an independent fuzzer: schemathesis reads the document and checks what a real server answers."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from headrace.api.openapi import document
from tests.e2e.conftest import Server

schemathesis: Any = pytest.importorskip("schemathesis", reason="the fuzzer is not installed: make setup")
jsonschema_rs: Any = importlib.import_module("jsonschema_rs")
checks: Any = importlib.import_module("schemathesis.checks")
openapi_checks: Any = importlib.import_module("schemathesis.specs.openapi.checks")

DOCUMENT = document("1")
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]
WITH_BODY = [operation for operation in OPERATIONS if operation.body]
ASKING = [operation for operation in WITH_BODY if not operation.path.startswith("/admin")]
MOST = {"max_tokens": 4, "max_completion_tokens": 4, "min_tokens": 1, "n": 3, "best_of": 3, "attention_window": 500}
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
]


@pytest.fixture(scope="module")
def client(tiny: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny.url, timeout=30, trust_env=False) as opened:
        yield opened


def send(client: httpx.Client, case: Any) -> httpx.Response:
    wanted = case.as_transport_kwargs(base_url=str(client.base_url))
    known = {name: wanted[name] for name in ("json", "params") if wanted.get(name) is not None}
    if wanted.get("data") is not None:
        known["content"] = wanted["data"]
    headers = {
        name: text.encode("latin-1", errors="replace")
        for name, text in dict(wanted["headers"]).items()
        if name.lower() not in ("authorization", "x-api-key") and text.strip() == text
    }
    return client.request(wanted["method"], wanted["url"], headers=headers, **known)


def fuzz(operation: Any, num: int, mode: str, check: Callable[[Any], None]) -> None:
    """Make `num` calls as the document allows them ("POSITIVE") or does not ("NEGATIVE")."""

    @seed(7)
    @settings(
        max_examples=num, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    def run(case: Any) -> None:
        check(case)

    run()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_operation_answers_as_its_document_says(client: httpx.Client, operation: Any) -> None:
    fuzz(
        operation,
        3 if operation.body else 1,
        "POSITIVE",
        lambda case: case.validate_response(send(client, case), checks=CHECKS),
    )


@pytest.mark.parametrize("operation", ASKING, ids=lambda operation: operation.label)
def test_what_is_asked_within_the_document_and_the_models_means_is_answered(
    client: httpx.Client, operation: Any
) -> None:
    statuses: Counter[int] = Counter()

    def ask(case: Any) -> None:
        case.body, case.headers = tamed(case.body, operation), {}
        response = send(client, case)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)
        if response.headers["content-type"].startswith("text/event-stream"):
            check_events(response.text, operation)

    fuzz(operation, 8, "POSITIVE", ask)
    assert statuses[200] > statuses.total() / 2, statuses


def check_events(text: str, operation: Any) -> None:
    """Compare each event with what the document says of it."""
    media = DOCUMENT["paths"][operation.path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    said = media["schema"]["properties"]["data"]["contentSchema"]
    validator = jsonschema_rs.validator_for({**said, "components": DOCUMENT["components"]})
    for line in text.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            validator.validate(json.loads(line.removeprefix("data: ")))


@pytest.mark.parametrize("operation", WITH_BODY, ids=lambda operation: operation.label)
def test_what_the_document_does_not_allow_is_refused(client: httpx.Client, operation: Any) -> None:
    def refuse(case: Any) -> None:
        case.validate_response(send(client, case), checks=[*CHECKS, openapi_checks.negative_data_rejection])

    fuzz(operation, 5, "NEGATIVE", refuse)


def tamed(body: dict[str, Any], operation: Any) -> dict[str, Any]:
    """Take out of a body what a tiny model of this process cannot serve."""
    content = DOCUMENT["paths"][operation.path]["post"]["requestBody"]["content"]
    schema = SCHEMAS[content["application/json"]["schema"]["$ref"].rpartition("/")[2]]
    kept = {
        name: whole(value)
        for name, value in body.items()
        if name != "model"
        and not schema["properties"][name].get("description", "").startswith(("refused", "passed on"))
    }
    for name, most in MOST.items():
        if kept.get(name) is not None:
            kept[name] = min(kept[name], most)
    if kept.get("messages"):
        kept["messages"] = [plain(message) for message in kept["messages"][:3]]
    if {"prompt", "messages"} <= schema["properties"].keys():  # one of them
        kept.pop("messages" if kept.get("prompt") else "prompt", None)
        kept = kept if kept.get("messages") else {"prompt": "x", **kept}
    for name in ("prompt", "tokens", "stop_token_ids"):
        if isinstance(kept.get(name), list):
            kept[name] = [known(part) for part in kept[name] if isinstance(part, type(kept[name][0]))]
    return kept


def plain(message: dict[str, Any]) -> dict[str, Any]:
    text = message["content"] if isinstance(message.get("content"), str) else "x"
    content = [{"type": "text", "text": text}] if isinstance(message.get("content"), list) else text
    return {"role": "assistant" if message["role"] == "assistant" else "user", "content": content}


def whole(value: Any) -> Any:
    """Spell whole numbers without a decimal point: JSON Schema has no words for that, and the server insists."""
    if isinstance(value, list):
        return [whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def known(part: Any) -> Any:
    """Return token ids that the model has; texts as they are."""
    if isinstance(part, list):
        return [known(each) for each in part]
    return part % 250 if isinstance(part, int) else part
