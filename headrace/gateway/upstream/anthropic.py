"""Remote servers that speak Anthropic's wire: Anthropic, and any other by URL.

Owns nothing between requests. Invariant: leaving an attempt early closes its connection, which ends the work there.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.core.request import Request
from headrace.core.upstream_settings import UpstreamSettings
from headrace.gateway.upstream.address import api_base, limits_of, request_headers
from headrace.gateway.upstream.anthropic_body import encode_count, encode_request
from headrace.gateway.upstream.anthropic_events import AnthropicEvents
from headrace.gateway.upstream.profiles import profiles
from headrace.gateway.upstream.refusals import unsupported
from headrace.gateway.upstream.replies import Answer, decoded
from headrace.gateway.upstream.reported import ReportedCosts
from headrace.gateway.upstream.transport import Transport


class AnthropicAdapter:
    """One server. Implements `member.Adapter`."""

    def __init__(self, name: str, settings: UpstreamSettings, transport: Transport) -> None:
        self._name = name
        self._settings = settings
        self._transport = transport
        self._profile = profiles()[settings.profile]
        self._limits = limits_of(settings)
        self._base = api_base(settings.url)
        self.costs = ReportedCosts(name, settings.reported_cost)

    async def ask(self, request: Request, model: str, secret: str | None) -> Answer:
        """Send the request and wait for the head of its reply. Raises Failure."""
        wants_stream = request.given is not None and request.given.wants_stream
        body = encode_request(request, model, self._name, self._settings.max_tokens)
        first_byte_s = self._limits.first_byte_s if wants_stream else self._limits.total_s
        headers = self._headers(request, secret)
        reply = await self._transport.post(
            self._name, self._base + "/messages", headers, body, self._limits, first_byte_s
        )
        reader = AnthropicEvents(self._name)
        return Answer(self._name, reply, reader, self.costs, self._settings.max_event_bytes)

    async def count(self, request: Request, model: str, secret: str | None) -> int:
        """Ask how many tokens the prompt has. Raises Failure."""
        body = encode_count(request, model, self._name)
        url = self._base + "/messages/count_tokens"
        headers = self._headers(request, secret)
        reply = await self._transport.post(self._name, url, headers, body, self._limits, self._limits.first_byte_s)
        return (await decoded(self._name, reply, _Count, "count of tokens")).input_tokens

    async def detokenize(self, token_ids: Sequence[int], model: str, secret: str | None) -> str:
        """Raise Failure: this wire has no tokens."""
        raise unsupported("detokenize", self._name, self._settings.profile)

    def _headers(self, request: Request, secret: str | None) -> dict[str, str]:
        headers = request_headers(self._settings, self._profile, secret, request.request_id)
        if request.given is not None and request.given.wire == "anthropic":
            headers.update(request.given.headers)
        if request.span is not None:
            headers.update(request.span.headers())
        return headers


class _Count(msgspec.Struct):
    input_tokens: int
