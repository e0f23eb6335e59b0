"""`GET /openapi.json`: the OpenAPI 3.1 document of the public API, made from the types that requests are read into.

Owns the document's shape; what each endpoint takes and gives is said in `endpoints`, ranges come from the tables that
requests are checked with, and errors from the error tree, so none of it can say something else than the code.
Whoever may call anything may read it; `headrace openapi` prints it without a server.
Source: spec.openapis.org/oas/v3.1.0; a stream is described by the schema of one of its events, as 3.2 does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec
from starlette.responses import Response

from headrace.api.anthropic_replies import AnthropicError
from headrace.api.endpoints import ENDPOINTS, TAGS, Endpoint
from headrace.api.errors import is_anthropic
from headrace.api.fields import complete
from headrace.api.openai_replies import ErrorReply
from headrace.api.visit import Visit
from headrace.core import errors
from headrace.core.errors import HeadraceError

Json = dict[str, Any]
_REF = "#/components/schemas/{name}"
_ABOUT = (
    "OpenAI's and Anthropic's wires over models of this process and remote upstreams. A field that is not listed is "
    "refused by name with status 400. Where accounts are kept, their administration has its own document, "
    "/admin/v1/openapi.json, which takes a key of the role admin. A server without keys takes calls without one."
)
_TEXT: Json = {"type": "string"}
_MARK: Json = {"type": "string", "pattern": "^[!-~]{1,128}$"}
REQUEST_HEADERS: dict[str, tuple[Json, str]] = {
    "x-request-id": (_TEXT, "The request's id: 1 to 128 printable characters without spaces, else one is made"),
    "x-correlation-id": (_TEXT, "Echoed, if it is such a name"),
    "X-Task-Id": (_MARK, "The caller's own name of the job that this is a step of: limits and budgets of tasks count"),
    "Idempotency-Key": ({"type": "string", "pattern": "^[!-~]{1,255}$"}, "The call happens once, however often sent"),
    "X-Resume-Grace": (
        {"type": "number", "minimum": 0},
        "Seconds for which the request goes on without a connection, up to `resume.max_grace_s`",
    ),
    "Last-Event-ID": (_TEXT, "The number of the last event that the client has had, where it has had some"),
    "x-headrace-degrade": ({"enum": ["allow", "never"]}, "`never`: nothing less than what was asked"),
    "anthropic-beta": (_TEXT, "Passed on to upstreams of Anthropic's wire"),
}  # fmt: skip
_ID_HEADERS = {
    "x-request-id": "The request's id: the caller's own, or a new one",
    "x-correlation-id": "The caller's own, where it sent one",
}
_ANSWER_HEADERS = {
    "x-headrace-cost-usd": "What the request is charged, in dollars; of a whole answer, or a failure that was charged",
    "x-headrace-reserved-usd": "What was set aside for it",
    "x-headrace-budget-max-tokens": "The tokens that the budget covers, where they are fewer than asked for",
    "x-headrace-budget-warning": "Soft budgets that are past their mark",
    "x-headrace-upstream": "The remote upstream that answers",
    "x-headrace-degraded": "What the caller gets less of, and why",
    "idempotent-replayed": "`true`: the stored answer of an earlier call under the same key",
    **{
        f"x-ratelimit-{part}-{what}": f"{words} {what} of the tightest limit, as OpenAI spells it"
        for part, words in (("limit", "All"), ("remaining", "Left"), ("reset", "Time until all are there again:"))
        for what in ("requests", "tokens")
    },
}
_ERROR_HEADERS = {
    401: {"www-authenticate": "`Bearer`"},
    402: {"x-headrace-budget-scope": "Whose budget does not cover it"},
}
_LATER = {"Retry-After": "Seconds after which another try is worth it, where that is known"}
_ORDINARY = {
    400: "The request cannot be served as it stands",
    415: "A remote upstream does not take it",
    500: "A defect, which the log has under the request's id",
}


async def describe(visit: Visit) -> Response:
    """Return the document."""
    state = visit.state
    return Response(await asyncio.to_thread(_encoded, state.version), media_type="application/json")


@lru_cache(maxsize=1)
def _encoded(version: str) -> bytes:
    return msgspec.json.encode(document(version))


def document(version: str, url: str = "/") -> Json:
    """Return the document of a server at `url`."""
    schemas = _Schemas(
        [ErrorReply, AnthropicError, *(kind for e in ENDPOINTS for kind in (e.body, e.reply, *e.events) if kind)]
    )
    paths: dict[str, Json] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace", "version": version, "description": _ABOUT},
        "servers": [{"url": url}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": _refusals(schemas),
            "headers": {
                name: {"description": text, "schema": _TEXT}
                for name, text in {**_ID_HEADERS, **_ANSWER_HEADERS, **_LATER}.items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "the key, as OpenAI's clients send it"},
                "x-api-key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "as Anthropic's do",
                },
            },
        },
        "security": [{"bearer": []}, {"x-api-key": []}],
    }


class _Schemas:
    """The schemas of all types, and how each is referred to."""

    def __init__(self, kinds: Iterable[Any]) -> None:
        distinct = {str(kind): kind for kind in kinds}
        refs, self.components = msgspec.json.schema_components(
            distinct.values(), ref_template=_REF, schema_hook=_schema_of_object
        )
        self._refs: dict[str, Json] = dict(zip(distinct, refs, strict=True))
        complete(self.components)

    def of(self, kind: Any) -> Json:
        return self._refs[str(kind)]


def _schema_of_object(kind: type) -> Json:
    if kind is object:  # read only to be passed on, or refused
        return {"description": "any JSON"}
    raise NotImplementedError(kind)  # so msgspec hears that a type has no schema, and names it


def _operation(endpoint: Endpoint, schemas: _Schemas) -> Json:
    names = re.findall(r"{(\w+)}", endpoint.path)
    described: Json = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "parameters": [
            *({"name": n, "in": "path", "required": True, "schema": {**_TEXT, "minLength": 1}} for n in names),
            *(
                {"name": n, "in": "header", "schema": schema, "description": text}
                for n, (schema, text) in REQUEST_HEADERS.items()
                if n in endpoint.headers
            ),
        ],
        "responses": _responses(endpoint, schemas),
    }
    if endpoint.body is not None:
        described["requestBody"] = {"required": True, "content": _json(schemas.of(endpoint.body))}
    if endpoint.is_open:
        described["security"] = []
    return described


def _responses(endpoint: Endpoint, schemas: _Schemas) -> Json:
    content: Json = {kind: {"schema": _TEXT} for kind in endpoint.text}
    if endpoint.reply is not None:
        content |= _json(schemas.of(endpoint.reply))
    if endpoint.events:
        content["text/event-stream"] = {"schema": _event([schemas.of(kind) for kind in endpoint.events], endpoint.path)}
    computes = endpoint.tag == "answers" or bool(endpoint.events)
    headers = _headers((*_ID_HEADERS, *(_ANSWER_HEADERS if computes else ())))
    answers: Json = {"200": {"description": endpoint.summary, "headers": headers, "content": content}}
    if endpoint.is_empty:
        answers["204"] = {"description": "The client has everything", "headers": _headers(_ID_HEADERS)}
    if endpoint.unhealthy:
        answers["503"] = {**answers["200"], "description": "No; `state` and `reason` say why"}
    for status in sorted(endpoint.refusals):
        answers[str(status)] = {"$ref": f"#/components/responses/{_shape(endpoint).__name__}{status}"}
    return answers


def _event(kinds: list[Json], path: str) -> Json:
    """Describe one event of a stream."""
    about = "One of the server-sent events" + ("" if is_anthropic(path) else "; the data of the last is `[DONE]`")
    data = {**_TEXT, "contentMediaType": "application/json", "contentSchema": {"anyOf": kinds}}
    properties = {"event": _TEXT, "id": _TEXT, "data": data}
    return {"type": "object", "description": about, "properties": properties, "required": ["data"]}


def _shape(endpoint: Endpoint) -> type[ErrorReply | AnthropicError]:
    return AnthropicError if is_anthropic(endpoint.path) else ErrorReply


def _refusals(schemas: _Schemas) -> Json:
    """Return the replies of all statuses in the shapes of both wires."""
    common = _headers((*_ID_HEADERS, *_ANSWER_HEADERS, *_LATER))
    replies: Json = {}
    for endpoint in ENDPOINTS:
        shape = _shape(endpoint)
        for status in endpoint.refusals:
            own = {
                name: {"description": text, "schema": _TEXT} for name, text in _ERROR_HEADERS.get(status, {}).items()
            }
            content = _json(schemas.of(shape))
            replies[f"{shape.__name__}{status}"] = {
                "description": _meaning(status), "headers": {**common, **own}, "content": content
            }  # fmt: skip
    return replies


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _meaning(status: int) -> str:
    """Say what a status stands for: the errors of the tree that have it, by the codes that replies carry."""
    lines = [
        f"`{kind.code}`: {(kind.__doc__ or '').splitlines()[0]}"
        for kind in _tree(HeadraceError)
        if kind.http_status == status and not issubclass(kind, errors.ConfigError) and "code" in vars(kind)
    ]
    return "\n\n".join([*filter(None, [_ORDINARY.get(status)]), *lines])


def _tree(kind: type[HeadraceError]) -> list[type[HeadraceError]]:
    return [found for below in kind.__subclasses__() for found in (below, *_tree(below))]


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
