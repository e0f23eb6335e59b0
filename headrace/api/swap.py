"""POST /admin/models/{name}/swap: other weights for a served name, while it goes on serving.

Owns the wire; the work is `app.swapping`'s. Who may call is the gatekeeper's matter: an admin's key, the server's key,
or anybody on this machine where there are no keys.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.responses import Response

from headrace.api.body import read_body
from headrace.api.visit import Visit
from headrace.core.errors import UnknownModel
from headrace.core.swap import SwapReply


class SwapBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where the new weights are, and what running requests get to finish."""

    source: str
    drain_s: Annotated[float, msgspec.Meta(ge=0)] | None = None


async def swap_model(visit: Visit) -> Response:
    """Swap; answers once new requests get the new weights. Raises UnknownModel or SwapRefused."""
    state = visit.state
    body = await read_body(visit, SwapBody, state.max_body_bytes)
    name = visit.path_param("name")
    if state.swap is None:
        raise UnknownModel(f"model '{name}' is not served from weights here, so they cannot be swapped")
    reply: SwapReply = await state.swap(name, body.source, body.drain_s)
    return Response(msgspec.json.encode(reply), media_type="application/json")
