"""The ASGI application: routes, error translation and access rules in one place.

Owns the route table. Built by `app.serving` and by tests from an `ApiState`; holds no state of its own.
"""

from __future__ import annotations

import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

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
from headrace.api.calls import Call
from headrace.api.errors import error_response, plain_error
from headrace.api.sse import ClientGone
from headrace.api.state import ApiState
from headrace.api.trail import Trail
from headrace.core.errors import HeadraceError
from headrace.core.tracing import Span

_log = logging.getLogger(__name__)

_ROUTES = [
    Route("/", welcome.welcome, methods=["GET"]),
    Route("/v1/chat/completions", chat.create_chat_completion, methods=["POST"]),
    Route("/v1/completions", completions.create_completion, methods=["POST"]),
    Route("/v1/messages", messages.create_message, methods=["POST"]),
    Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
    Route("/v1/models", health.list_models, methods=["GET"]),
    Route("/v1/models/{model_id:path}", health.get_model, methods=["GET"]),
    Route("/v1/requests/{request_id}", requests.show, methods=["GET"]),
    Route("/v1/requests/{request_id}", requests.cancel, methods=["DELETE"]),
    Route("/v1/requests/{request_id}/why", why.explain, methods=["GET"]),
    Route("/v1/requests/{request_id}/cancel", requests.cancel, methods=["POST"]),
    Route("/v1/requests/{request_id}/events", exchange.resume, methods=["GET"]),
    Route("/v1/prefixes", prefixes.create_prefix, methods=["POST"]),
    Route("/tokenize", tokenize.tokenize, methods=["POST"]),
    Route("/detokenize", tokenize.detokenize, methods=["POST"]),
    Route("/health", health.ready, methods=["GET"]),
    Route("/health/live", health.live, methods=["GET"]),
    Route("/health/ready", health.ready, methods=["GET"]),
    Route("/health/progress", health.progress, methods=["GET"]),
    Route("/health/upstreams", health.upstreams, methods=["GET"]),
    Route("/admin/models/{name:path}/swap", swap.swap_model, methods=["POST"]),
    Route("/metrics", health.metrics, methods=["GET"]),
    Route("/version", health.version, methods=["GET"]),
    Route("/openapi.json", openapi.describe, methods=["GET"]),
]


def build_app(state: ApiState) -> ASGIApp:
    """Return the application that serves `state`."""
    app = Starlette(
        routes=[*_ROUTES, *state.admin],
        exception_handlers={
            HeadraceError: _tree_error,
            HTTPException: _router_error,
            ClientGone: _client_gone,
            Exception: _unexpected,
        },
    )
    app.state.api = state
    served: ASGIApp = Access(app, state)
    if not state.cors_origins:
        return served
    return CORSMiddleware(
        served,
        allow_origins=state.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "idempotent-replayed"],
    )


async def _tree_error(http: Request, err: Exception) -> Response:
    span: Span | None = http.state.span
    if span is not None and isinstance(err, HeadraceError):
        span.note({"error.type": err.code})
    _note_failure(http, err)
    if isinstance(err, HeadraceError) and not err.is_settled and http.url.path in ANSWERING:
        state: ApiState = http.app.state.api
        call: Call | None = getattr(http.state, "call", None)
        state.note_refused(http.state.caller, "" if call is None else call.model, err)
    return error_response(err, http.state.request_id, http.url.path)


async def _router_error(http: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    if err.status_code == 404:
        return plain_error(404, f"no endpoint {http.url.path}; the API lives under /v1", "not_found")
    allowed = (err.headers or {}).get("allow") or (err.headers or {}).get("Allow", "")
    message = f"{http.url.path} does not take {http.method}; use {allowed}"
    return plain_error(err.status_code, message, "method_not_allowed")


async def _client_gone(http: Request, err: Exception) -> Response:
    _log.info("client gone, request %s aborted", http.state.request_id)
    return Response(status_code=499)


async def _unexpected(http: Request, err: Exception) -> Response:
    _note_failure(http, err)
    _log.error("request %s failed unexpectedly", http.state.request_id, exc_info=err)
    return error_response(err, http.state.request_id, http.url.path)


def _note_failure(http: Request, err: Exception) -> None:
    trail: Trail | None = getattr(http.state, "trail", None)
    if trail is not None:
        trail.fail(err)
