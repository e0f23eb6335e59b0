"""Requests by id: what one came to, and its end from outside the connection that started it.

Owns nothing; the calls belong to `calls`. A stream whose caller asked for no usage has its cost here.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from headrace.api.calls import CallStatus
from headrace.api.openai_replies import UsageReply, sum_usages, usage_reply
from headrace.api.visit import Visit
from headrace.econ import show_usd


class CancelReply(msgspec.Struct, tag_field="object", tag="request"):
    """How a request stands after a wish to end it."""

    id: str
    status: CallStatus


class AccountReply(msgspec.Struct, tag_field="object", tag="request"):
    """What a request has come to. `usage` is absent until it is known, `cost` in it where the model has no price."""

    id: str
    status: CallStatus
    model: str
    usage: UsageReply | UnsetType = UNSET


async def show(visit: Visit) -> Response:
    """GET /v1/requests/{id}: how it stands, and its usage and cost; 404 for ids that this key has not used lately."""
    state = visit.state
    request_id = visit.path_param("request_id")
    owner = visit.caller.key_id
    status, model, told = state.calls.look(owner, request_id)
    asked = state.calls.request_ids(owner, request_id)
    settled = [usage for each in asked if (usage := state.settled(owner, each)) is not None]
    reply, headers = AccountReply(request_id, status, model), {}
    if usages := settled or told:
        total = sum_usages(usages)
        reply.usage = usage_reply(total)
        if total.cost_nano is not None:
            headers["x-headrace-cost-usd"] = show_usd(total.cost_nano)
    return Response(msgspec.json.encode(reply), headers=headers, media_type="application/json")


async def cancel(visit: Visit) -> Response:
    """DELETE /v1/requests/{id}: end it. Idempotent; 404 for ids that this API key has not used lately."""
    state = visit.state
    request_id = visit.path_param("request_id")
    reply = CancelReply(request_id, state.calls.cancel(visit.caller.key_id, request_id))
    return Response(msgspec.json.encode(reply), media_type="application/json")
