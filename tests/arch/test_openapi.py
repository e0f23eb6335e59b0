"""The document of the HTTP API speaks of every route, of no other, and of the types that are read there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.api.app import _ROUTES
from headrace.api.endpoints import ENDPOINTS, Endpoint
from headrace.api.openapi import document
from headrace.core import errors

DOCUMENT = document("1")


def routes() -> dict[tuple[str, str], Any]:
    """Every endpoint function, by method and path as the document spells it."""
    return {(method, re.sub(r":\w+}", "}", path)): endpoint for method, path, endpoint in _ROUTES}


def refs(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        own += list(node.get("discriminator", {}).get("mapping", {}).values())
        return own + [ref for value in node.values() for ref in refs(value)]
    return [ref for value in node for ref in refs(value)] if isinstance(node, list) else []


def body_read_by(endpoint: Any, repository: Path) -> str | None:
    """The type of body that an endpoint function names."""
    path = repository / (endpoint.__module__.replace(".", "/") + ".py")
    (function,) = (
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.AsyncFunctionDef) and node.name == endpoint.__name__
    )
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id.endswith("Body"):
            return node.id
    return None


def test_every_route_is_described_and_nothing_else() -> None:
    assert {(e.method, e.path) for e in ENDPOINTS} == set(routes())
    described = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == set(routes())


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: e.name)
def test_the_body_that_is_described_is_the_one_that_is_read(endpoint: Endpoint, repository: Path) -> None:
    read = body_read_by(routes()[endpoint.method, endpoint.path], repository)
    assert read == (None if endpoint.body is None else endpoint.body.__name__)


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    used = set(refs(DOCUMENT))
    for ref in used:
        node: Any = DOCUMENT
        for part in ref.removeprefix("#/").split("/"):
            node = node[part]
    kept = {f"#/components/{kind}/{name}" for kind in ("schemas", "headers") for name in DOCUMENT["components"][kind]}
    assert kept <= used


def test_names_of_operations_are_distinct() -> None:
    assert len({e.name for e in ENDPOINTS}) == len(ENDPOINTS)


def test_a_body_that_refuses_unknown_fields_says_so_and_one_that_does_not_does_not() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        kind = next((e.body for e in ENDPOINTS if e.body is not None and e.body.__name__ == name), None)
        if kind is not None:
            assert kind.__struct_config__.forbid_unknown_fields
            assert schema["additionalProperties"] is False
            assert set(schema["properties"]) == {field.encode_name for field in msgspec.structs.fields(kind)}
    assert "additionalProperties" not in DOCUMENT["components"]["schemas"]["ContentPart"]


def test_every_error_that_calls_can_meet_is_named_under_its_status() -> None:
    responses = DOCUMENT["components"]["responses"]
    for kind in vars(errors).values():
        if not (isinstance(kind, type) and issubclass(kind, errors.HeadraceError)) or "code" not in vars(kind):
            continue
        if kind is not errors.HeadraceError and not issubclass(kind, errors.ConfigError):
            assert f"`{kind.code}`" in responses[f"ErrorReply{kind.http_status}"]["description"], kind
