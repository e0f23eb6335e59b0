"""The ASGI application: routes, error translation and access rules in one place.

Owns the route table. Built by `app.serving` and by tests from an `ApiState`; holds no state of its own.
A path without a placeholder is looked up, one with a placeholder or of the administration is matched by Starlette's
router; what either raises is translated here, in one place, unless the reply has begun.
"""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.api import (
    chat,
    completions,
    exchange,
    health,
    messages,
    openapi,
    prefixes,
    requests,
    swap,
    tokenize,
    welcome,
    why,
)
from headrace.api.access import ANSWERING, Access
from headrace.api.errors import error_response, plain_error
from headrace.api.sse import ClientGone
from headrace.api.state import ApiState
from headrace.api.visit import EndpointFunction, Visit
from headrace.core.errors import HeadraceError

_log = logging.getLogger(__name__)

_ROUTES: tuple[tuple[str, str, EndpointFunction], ...] = (
    ("GET", "/", welcome.welcome),
    ("POST", "/v1/chat/completions", chat.create_chat_completion),
    ("POST", "/v1/completions", completions.create_completion),
    ("POST", "/v1/messages", messages.create_message),
    ("POST", "/v1/messages/count_tokens", messages.count_tokens),
    ("GET", "/v1/models", health.list_models),
    ("GET", "/v1/models/{model_id:path}", health.get_model),
    ("GET", "/v1/requests/{request_id}", requests.show),
    ("DELETE", "/v1/requests/{request_id}", requests.cancel),
    ("GET", "/v1/requests/{request_id}/why", why.explain),
    ("POST", "/v1/requests/{request_id}/cancel", requests.cancel),
    ("GET", "/v1/requests/{request_id}/events", exchange.resume),
    ("POST", "/v1/prefixes", prefixes.create_prefix),
    ("POST", "/tokenize", tokenize.tokenize),
    ("POST", "/detokenize", tokenize.detokenize),
    ("GET", "/health", health.ready),
    ("GET", "/health/live", health.live),
    ("GET", "/health/ready", health.ready),
    ("GET", "/health/progress", health.progress),
    ("GET", "/health/upstreams", health.upstreams),
    ("POST", "/admin/models/{name:path}/swap", swap.swap_model),
    ("GET", "/metrics", health.metrics),
    ("GET", "/version", health.version),
    ("GET", "/openapi.json", openapi.describe),
)


def build_app(state: ApiState) -> ASGIApp:
    """Return the application that serves `state`."""
    served: ASGIApp = Access(_Dispatch(state), state)
    if not state.cors_origins:
        return served
    return CORSMiddleware(
        served,
        allow_origins=state.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "idempotent-replayed"],
    )


class _Dispatch:
    """Finds the endpoint of a call and spells what it raises."""

    def __init__(self, state: ApiState) -> None:
        endpoints = {(method, path): _Served(endpoint) for method, path, endpoint in _ROUTES}
        routes = [Route(path, served, methods=[method]) for (method, path), served in endpoints.items()]
        self._router = Router([*routes, *state.admin])
        self._served = {key: served for key, served in endpoints.items() if "{" not in key[1]}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        visit: Visit = scope["state"]["visit"]
        try:
            served = self._served.get((visit.method, visit.path))
            if served is None:
                scope["app"] = self  # whose presence has the router raise what it refuses
                await self._router(scope, receive, send)
            else:
                await served(scope, receive, send)
        except Exception as err:
            if visit.status:
                raise
            response = _told(visit, err)
            await response(scope, receive, send)
            if not isinstance(err, _EXPECTED):
                raise  # for the server's own log


class _Served:
    """An endpoint as an ASGI application."""

    def __init__(self, endpoint: EndpointFunction) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._endpoint(scope["state"]["visit"])
        await answer(scope, receive, send)


_EXPECTED = (HeadraceError, HTTPException, ClientGone)


def _told(visit: Visit, err: Exception) -> Response:
    """Return what a call is told that failed before its reply began."""
    match err:
        case HeadraceError():
            return _tree_error(visit, err)
        case HTTPException():
            return _router_error(visit, err)
        case ClientGone():
            _log.info("client gone, request %s aborted", visit.request_id)
            return Response(status_code=499)
        case _:
            _note_failure(visit, err)
            _log.error("request %s failed unexpectedly", visit.request_id, exc_info=err)
            return error_response(err, visit.request_id, visit.path)


def _tree_error(visit: Visit, err: HeadraceError) -> Response:
    if visit.span is not None:
        visit.span.note({"error.type": err.code})
    _note_failure(visit, err)
    if not err.is_settled and visit.path in ANSWERING:
        visit.state.note_refused(visit.caller, "" if visit.call is None else visit.call.model, err)
    return error_response(err, visit.request_id, visit.path)


def _router_error(visit: Visit, err: HTTPException) -> Response:
    if err.status_code == 404:
        return plain_error(404, f"no endpoint {visit.path}; the API lives under /v1", "not_found")
    allowed = (err.headers or {}).get("allow") or (err.headers or {}).get("Allow", "")
    message = f"{visit.path} does not take {visit.method}; use {allowed}"
    return plain_error(err.status_code, message, "method_not_allowed")


def _note_failure(visit: Visit, err: Exception) -> None:
    if visit.trail is not None:
        visit.trail.fail(err)
