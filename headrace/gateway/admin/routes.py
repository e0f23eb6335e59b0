"""The admin API's routes: one endpoint per operation, bodies decoded strictly, refusals raised for the API to spell.

Owns nothing. `api.access` has made sure that the caller's key has the role admin. Every change is logged with who made
it and on what, without its content.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.core.caller import Caller
from headrace.core.errors import BodyTooLarge, MalformedBody, NotFound, UnknownParameter
from headrace.gateway.admin.bodies import Body
from headrace.gateway.admin.openapi import PREFIX, document
from headrace.gateway.admin.operations import OPERATIONS, Operation, Registries, encode
from headrace.gateway.audit import Chain, Journal
from headrace.gateway.store import Database

MAX_BODY_BYTES = 256 << 10
MAX_ID_CHARS = 256
_CHOICE = re.compile(r"Invalid enum value '(?P<value>.*)' - at `\$\.(?P<field>\w+)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*?)`", re.DOTALL)
_log = logging.getLogger(__name__)
AdminRoutes = list[Route]
_Endpoint = Callable[[Request], Awaitable[Response]]


def admin_routes(database: Database, version: str, chain: Chain | None = None) -> AdminRoutes:
    """Return the routes of the admin API over `database`. Changes are noted in `chain`."""
    described = msgspec.json.encode(document(version))

    async def describe(http: Request) -> Response:
        return Response(described, media_type="application/json")

    routes = [Route(f"{PREFIX}/openapi.json", describe, methods=["GET"])]
    methods: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        methods.setdefault(operation.path, {})[operation.method] = operation
    for path, operations in methods.items():
        place = path.replace("{id}", "{id:str}")
        routes.append(Route(PREFIX + place, _endpoint(database, chain, operations), methods=list(operations)))
    return routes


def _endpoint(database: Database, chain: Chain | None, operations: dict[str, Operation]) -> _Endpoint:
    async def serve(http: Request) -> Response:
        operation = operations["GET" if http.method == "HEAD" else http.method]
        body = None if operation.body is None else await _read(http, operation.body)
        if operation.query is not None:
            body = _query(http, operation.query)
        target = http.path_params.get("id", "")
        if not (target.isprintable() and len(target) <= MAX_ID_CHARS):
            raise NotFound(f"the id has {len(target)} characters, some of which no id has; list ids first", param="id")
        caller: Caller = http.state.caller
        journal = Journal(chain, caller=caller, request_id=http.state.request_id)
        reply = await operation.work(Registries(database, journal), target, body)
        if operation.method != "GET":
            _log.info("admin: %s of '%.80s' by key %s", operation.name, target or "a new one", caller.key_id)
        return Response(encode(reply), operation.status, media_type="application/json")

    return serve


async def _read(http: Request, body_type: type[Body]) -> Body:
    """Decode the body. Raises BodyTooLarge, MalformedBody or UnknownParameter."""
    raw = b""
    try:
        async for part in http.stream():
            raw += part
            if len(raw) > MAX_BODY_BYTES:
                raise BodyTooLarge(f"the body has at least {len(raw):,} bytes; the limit is {MAX_BODY_BYTES:,}")
    except ClientDisconnect as err:
        raise MalformedBody("the connection closed before the whole body arrived; send it again") from err
    try:
        return msgspec.json.decode(raw or b"{}", type=body_type)
    except msgspec.ValidationError as err:
        raise _explain(str(err), body_type) from err
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise MalformedBody(f"the body is not JSON: {err}") from err


def _query(http: Request, query_type: type[Body]) -> Body:
    """Decode what follows the question mark. Raises MalformedBody or UnknownParameter."""
    try:
        return msgspec.convert(dict(http.query_params), type=query_type, strict=False)
    except msgspec.ValidationError as err:
        raise _explain(str(err), query_type) from err


def _explain(message: str, body_type: type[Body]) -> MalformedBody | UnknownParameter:
    choice = _CHOICE.match(message)
    if choice is not None:
        name = choice["field"]
        known = ", ".join(_choices(body_type, name))
        return MalformedBody(f"{name} is '{choice['value'][:80]}'; it must be one of {known}", param=name)
    unknown = _UNKNOWN.match(message)
    if unknown is None:
        return MalformedBody(message)
    near = difflib.get_close_matches(unknown["name"], body_type.__struct_fields__, n=1, cutoff=0.0)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return UnknownParameter(f"unknown field '{unknown['name'][:80]}'{hint}", param=unknown["name"][:80])


def _choices(body_type: type[Body], name: str) -> list[str]:
    """Return the values that a field may have."""
    described = msgspec.inspect.type_info(body_type)
    assert isinstance(described, msgspec.inspect.StructType)
    (kind,) = (field.type for field in described.fields if field.encode_name == name)
    kinds = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
    values: list[str] = []
    for each in kinds:
        if isinstance(each, msgspec.inspect.EnumType):
            values += [str(member.value) for member in each.cls]
        elif isinstance(each, msgspec.inspect.LiteralType):
            values += [str(value) for value in each.values if value != ""]
    return values
