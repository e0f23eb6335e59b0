"""Why a request is where it is: asked of the engine that has it, by who started it.

Owns nothing. An id of another key, or one that was never used, is unknown alike.
"""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from headrace.api.visit import Visit
from headrace.core.errors import UnknownRequest
from headrace.core.why import Explanation, RequestState


async def explain(visit: Visit) -> Response:
    """GET /v1/requests/{id}/why: state, sentence and numbers. 404 for ids that this API key has not used lately."""
    state = visit.state
    wanted = visit.path_param("request_id")
    found: list[Explanation] = []
    for request_id in state.calls.request_ids(visit.caller.key_id, wanted):
        for model in state.models:
            if model.explain is not None and (explanation := await model.explain(request_id)) is not None:
                found.append(explanation)
                break
    if not found:
        raise UnknownRequest(
            f"nothing is known of request '{wanted}': it never came to an engine of this server, or ended more than "
            "ten minutes ago"
        )
    return Response(msgspec.json.encode(_joined(found)), media_type="application/json")


def _joined(found: list[Explanation]) -> Explanation:
    """Return the explanation of a call: of several prompts the one that is least far, with the choices of all."""
    if len(found) == 1:
        return found[0]
    first = min(found, key=lambda explanation: list(RequestState).index(explanation.state))
    choices = [choice for explanation in found for choice in explanation.choices]
    numbered = [msgspec.structs.replace(choice, index=index) for index, choice in enumerate(choices)]
    return msgspec.structs.replace(first, choices=numbered)
