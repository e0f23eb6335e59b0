"""Health, version, metrics and the list of models: what monitors and clients ask before they ask for tokens.

Invariant: readiness is told from the engine's forward progress, never from an open socket.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.api.openai_replies import ModelCard, ModelList
from headrace.api.served import ApiState, ServedModel


async def live(http: Request) -> Response:
    """200 while the process can still serve; 503 once an engine has stopped for good."""
    state: ApiState = http.app.state.api
    return _status(state.dead())


async def ready(http: Request) -> Response:
    """200 while new requests are taken; 503 with the reason while starting, draining, stuck or dead."""
    state: ApiState = http.app.state.api
    return _status(state.dead() or state.unready())


async def metrics(http: Request) -> Response:
    """Prometheus text."""
    state: ApiState = http.app.state.api
    body, content_type = state.render()
    return Response(body, media_type=content_type)


async def version(http: Request) -> Response:
    """The version of this server."""
    state: ApiState = http.app.state.api
    return _json({"version": state.version})


async def list_models(http: Request) -> Response:
    """All served models, the default first."""
    state: ApiState = http.app.state.api
    return _json(ModelList([_card(model) for model in state.models]))


async def get_model(http: Request) -> Response:
    """One served model. Raises UnknownModel."""
    state: ApiState = http.app.state.api
    return _json(_card(state.models.find(http.path_params["model_id"])))


def _card(model: ServedModel) -> ModelCard:
    return ModelCard(model.name, model.created, model.root, model.max_context)


def _status(problem: str | None) -> Response:
    if problem is None:
        return _json({"status": "ok"})
    return Response(msgspec.json.encode({"status": problem}), 503, media_type="application/json")


def _json(reply: object) -> Response:
    return Response(msgspec.json.encode(reply), media_type="application/json")
