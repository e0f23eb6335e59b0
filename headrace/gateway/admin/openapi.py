"""The OpenAPI 3.1 document of the admin API, made from its operations.

Owns the document's shape; names and types come from `operations` and `bodies`.
Source: spec.openapis.org/oas/v3.1.0.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.gateway.admin.operations import OPERATIONS, Operation

PREFIX = "/admin/v1"
_REFUSALS = {
    "400": "The body or the id does not fit; the message says what would",
    "401": "No key, or one that does not work",
    "403": "The key has another role",
    "404": "There is no such object",
    "409": "It exists already, or its state forbids this",
    "413": "The body is too large",
    "503": "The database does not answer",
}


class Refusal(msgspec.Struct, frozen=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class RefusalReply(msgspec.Struct, frozen=True):
    """The envelope of every refusal."""

    error: Refusal


def document(version: str, url: str = "/") -> dict[str, Any]:
    """Return the document of a server at `url`."""
    kinds: list[Any] = [RefusalReply, *(o.reply for o in OPERATIONS), *(o.body for o in OPERATIONS if o.body)]
    refs, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = {str(kind): ref for kind, ref in zip(kinds, refs, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(PREFIX + operation.path, {})[operation.method.lower()] = _describe(operation, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace administration", "version": version},
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "a key of the role admin"}},
        },
        "security": [{"key": []}],
    }


def _describe(operation: Operation, by_kind: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            str(operation.status): {"description": operation.summary, "content": _json(by_kind[str(operation.reply)])}
        },
    }
    for status, text in _REFUSALS.items():
        described["responses"][status] = {"description": text, "content": _json(by_kind[str(RefusalReply)])}
    if "{id}" in operation.path:
        described["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    if operation.query is not None:
        described["parameters"] = [
            *described.get("parameters", ()),
            *(
                {"name": name, "in": "query", "required": False, "schema": schema}
                for name, schema in _properties(operation.query).items()
            ),
        ]
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(by_kind[str(operation.body)])}
    return described


def _properties(query: type[msgspec.Struct]) -> dict[str, Any]:
    schema = msgspec.json.schema(query)
    found: dict[str, Any] = schema["$defs"][query.__name__]["properties"]
    return found


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
