"""Is a remote upstream there, does it take the key, and does it have the models? Asked without spending a token.

Owns nothing. Called by `headrace upstreams`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from headrace.core.clock import MonotonicClock
from headrace.core.errors import ConfigError
from headrace.core.upstream_settings import UpstreamSettings
from headrace.gateway.upstream.address import api_base, check_url, limits_of, probe_url, request_headers
from headrace.gateway.upstream.failure import Failure, Kind
from headrace.gateway.upstream.profiles import Profile, profiles
from headrace.gateway.upstream.replies import checked
from headrace.gateway.upstream.transport import Transport

_PROBE_S = 10.0


class UpstreamProbe(msgspec.Struct, frozen=True, kw_only=True):
    """What one upstream answered.

    problem         why it cannot be used; None if it can
    round_trip_s    how long its health took to answer; None if it did not
    missing_models  names from the settings that its list of models lacks
    """

    name: str
    url: str
    profile: str
    models: dict[str, str]
    problem: str | None
    round_trip_s: float | None
    missing_models: tuple[str, ...] = ()


class _Card(msgspec.Struct):
    id: str


class _Cards(msgspec.Struct):
    data: list[_Card] = []


async def probe_all(settings: Mapping[str, UpstreamSettings], read_secret: Callable[[str], str]) -> list[UpstreamProbe]:
    """Ask every upstream, all at once."""
    transport = Transport()
    try:
        probes = [_probe(name, upstream, read_secret, transport) for name, upstream in settings.items()]
        return list(await asyncio.gather(*probes))
    finally:
        await transport.close()


async def _probe(
    name: str, settings: UpstreamSettings, read_secret: Callable[[str], str], transport: Transport
) -> UpstreamProbe:
    profile = profiles()[settings.profile]
    problem: str | None = None
    round_trip_s: float | None = None
    missing: tuple[str, ...] = ()
    try:
        check_url(name, settings.url)
        places = [settings.api_key] if isinstance(settings.api_key, str) else settings.api_key or []
        secret = read_secret(places[0]) if places else None
        start_s = MonotonicClock().now()
        await _get(name, probe_url(settings, profile), settings, profile, secret, transport)
        round_trip_s = MonotonicClock().now() - start_s
        missing = await _missing_models(name, settings, profile, secret, transport)
    except ConfigError as err:
        problem = err.message
    except Failure as failure:
        problem = failure.error.message
    if missing:
        problem = f"upstream '{name}' does not list {', '.join(missing)}; check upstreams.{name}.models"
    return UpstreamProbe(
        name=name,
        url=settings.url,
        profile=settings.profile,
        models=settings.models,
        problem=problem,
        round_trip_s=round_trip_s,
        missing_models=missing,
    )


async def _missing_models(
    name: str, settings: UpstreamSettings, profile: Profile, secret: str | None, transport: Transport
) -> tuple[str, ...]:
    """Compare the settings with the server's list; a server without such a list is taken at its word."""
    try:
        body = await _get(name, f"{api_base(settings.url)}/models", settings, profile, secret, transport)
        listed = {card.id for card in msgspec.json.decode(body, type=_Cards).data}
    except msgspec.DecodeError:
        return ()
    except Failure as failure:
        if failure.kind is Kind.MISPLACED:
            return ()
        raise
    return tuple(model for model in settings.models.values() if listed and model not in listed)


async def _get(
    name: str, url: str, settings: UpstreamSettings, profile: Profile, secret: str | None, transport: Transport
) -> bytes:
    limits = limits_of(settings)
    limits = msgspec.structs.replace(limits, first_byte_s=min(limits.first_byte_s, _PROBE_S), total_s=_PROBE_S)
    reply = await transport.get(name, url, request_headers(settings, profile, secret, "probe"), limits)
    try:
        await checked(name, reply)
        return await reply.body()
    finally:
        reply.close()
