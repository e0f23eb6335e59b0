"""Requests by id: end one from outside the connection that started it.

Owns nothing; the calls belong to `calls`.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.api.calls import CallStatus, owner_of
from headrace.api.state import ApiState


class CancelReply(msgspec.Struct, tag_field="object", tag="request"):
    """How a request stands after a wish to end it."""

    id: str
    status: CallStatus


async def cancel(http: Request) -> Response:
    """DELETE /v1/requests/{id}: end it. Idempotent; 404 for ids that this API key has not used lately."""
    state: ApiState = http.app.state.api
    request_id: str = http.path_params["request_id"]
    reply = CancelReply(request_id, state.calls.cancel(owner_of(http), request_id))
    return Response(msgspec.json.encode(reply), media_type="application/json")
