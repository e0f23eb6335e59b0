"""Remote servers that speak OpenAI's wire: vLLM, SGLang, TGI, TensorRT-LLM, llama.cpp, Ollama, LMDeploy, OpenAI, any.

Owns nothing between requests. Invariant: leaving an attempt early closes its connection, which ends the work there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from headrace.core.conversation import Conversation
from headrace.core.request import Request
from headrace.core.upstream_settings import UpstreamSettings
from headrace.gateway.upstream.address import api_base, limits_of, request_headers, server_root
from headrace.gateway.upstream.openai_body import Dialect, encode_count, encode_request
from headrace.gateway.upstream.openai_events import OpenAIEvents
from headrace.gateway.upstream.profiles import profiles
from headrace.gateway.upstream.refusals import unsupported
from headrace.gateway.upstream.replies import Answer, decoded
from headrace.gateway.upstream.reported import ReportedCosts
from headrace.gateway.upstream.transport import Transport

T = TypeVar("T")


class _Count(msgspec.Struct):
    count: int


class _Spelled(msgspec.Struct):
    prompt: str


class OpenAIAdapter:
    """One server. Implements `member.Adapter`."""

    def __init__(self, name: str, settings: UpstreamSettings, transport: Transport) -> None:
        self._name = name
        self._settings = settings
        self._transport = transport
        self._profile = profiles()[settings.profile]
        self._dialect = Dialect(name, self._profile, settings.profile)
        self._limits = limits_of(settings)
        self._base = api_base(settings.url)
        self.costs = ReportedCosts(name, settings.reported_cost)

    async def ask(self, request: Request, model: str, secret: str | None) -> Answer:
        """Send the request and wait for the head of its reply. Raises Failure."""
        given = request.given
        wants_stream = given is not None and given.wants_stream
        body = encode_request(request, model, self._dialect)
        path = "/chat/completions" if isinstance(request.source, Conversation) else "/completions"
        first_byte_s = self._limits.first_byte_s if wants_stream else self._limits.total_s
        headers = request_headers(self._settings, self._profile, secret, request.request_id)
        if request.span is not None:
            headers.update(request.span.headers())
        reply = await self._transport.post(self._name, self._base + path, headers, body, self._limits, first_byte_s)
        reader = OpenAIEvents(self._name, request.n)
        return Answer(self._name, reply, reader, self.costs, self._settings.max_event_bytes)

    async def count(self, request: Request, model: str, secret: str | None) -> int:
        """Ask how many tokens the prompt has. Raises Failure, for servers that cannot count as well."""
        if self._profile.counts is None:
            raise unsupported("count_tokens", self._name, self._settings.profile)
        body = encode_count(request, model, self._dialect)
        return (await self._ask("/tokenize", body, secret, request.request_id, _Count)).count

    async def detokenize(self, token_ids: Sequence[int], model: str, secret: str | None) -> str:
        """Ask how the server spells tokens, in vLLM's shape. Raises Failure."""
        body = msgspec.json.encode({"model": model, "tokens": list(token_ids)})
        return (await self._ask("/detokenize", body, secret, "detokenize", _Spelled)).prompt

    async def _ask(self, path: str, body: bytes, secret: str | None, request_id: str, kind: type[T]) -> T:
        """Call a small endpoint at the server's root. Raises Failure."""
        headers = request_headers(self._settings, self._profile, secret, request_id)
        url = server_root(self._settings.url) + path
        reply = await self._transport.post(self._name, url, headers, body, self._limits, self._limits.first_byte_s)
        return await decoded(self._name, reply, kind, f"reply of {path}")
