"""Health, version, metrics and the list of models: what monitors and clients ask before they ask for tokens.

Invariant: readiness is told from the engine's forward progress, never from an open socket.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.responses import Response

from headrace.api.openai_replies import ModelCard, ModelList
from headrace.api.served import RemoteModel, ServedModel
from headrace.api.visit import Visit
from headrace.core.health import HealthState, ServerHealth
from headrace.core.upstream_status import UpstreamStatus


class Version(msgspec.Struct):
    """What `/version` says."""

    version: str


class Upstreams(msgspec.Struct):
    """What `/health/upstreams` says."""

    upstreams: Sequence[UpstreamStatus]


async def live(visit: Visit) -> Response:
    """200 while the process can still serve or come back; 503 once it has stopped for good."""
    health = _health(visit)
    return _json(_summary(health), 503 if health.state is HealthState.DEAD else 200)


async def ready(visit: Visit) -> Response:
    """200 while new requests are taken; 503 with the reason while starting, draining, stalled or dead."""
    health = _health(visit)
    return _json(_summary(health), 200 if health.state.takes_requests else 503)


async def progress(visit: Visit) -> Response:
    """Steps, tokens, ages and stuck requests of every model."""
    return _json(_health(visit))


async def upstreams(visit: Visit) -> Response:
    """Breaker, load, keys and outcomes of every remote upstream."""
    state = visit.state
    return _json(Upstreams(state.upstreams()))


async def metrics(visit: Visit) -> Response:
    """Prometheus text."""
    state = visit.state
    body, content_type = state.render()
    return Response(body, media_type=content_type)


async def version(visit: Visit) -> Response:
    """The version of this server."""
    state = visit.state
    return _json(Version(state.version))


async def list_models(visit: Visit) -> Response:
    """All served models that the caller may ask, the default first."""
    state = visit.state
    caller = visit.caller
    allowed = [model for model in state.models if caller.models is None or model.name in caller.models]
    return _json(ModelList([_card(model) for model in allowed]))


async def get_model(visit: Visit) -> Response:
    """One served model. Raises UnknownModel."""
    state = visit.state
    return _json(_card(state.models.find(visit.path_param("model_id"))))


def _card(model: ServedModel | RemoteModel) -> ModelCard:
    return ModelCard(model.name, model.created, model.root, model.max_context)


def _health(visit: Visit) -> ServerHealth:
    state = visit.state
    return state.health()


def _summary(health: ServerHealth) -> ServerHealth:
    """Leave out what needs a key: which requests are in there."""
    return ServerHealth(state=health.state, reason=health.reason, start=health.start)


def _json(reply: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(reply), status, media_type="application/json")
