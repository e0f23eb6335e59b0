"""POST /v1/prefixes: compute a prompt's KV and keep it for a while, so that answers that begin with it start at once.

Owns nothing: the prompt runs as a request without output that asks for its blocks to be pinned. Used by the HTTP API
and, for `serve --warm`, by `app`.
A conversation that ends with a system message stands for all that continue it: its prefix is what two different
continuations have in common, whatever the template writes around them.
"""

from __future__ import annotations

import math

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from headrace.api.answers import collect
from headrace.api.body import read_body
from headrace.api.openai_replies import PrefixReply
from headrace.api.openai_types import Message, PrefixBody
from headrace.api.prompts import encode_chat, encode_text
from headrace.api.served import ServedModel
from headrace.api.state import ApiState
from headrace.core.delta import FinishReason
from headrace.core.errors import InvalidRequest, PromptTooLong, RequestFailed
from headrace.core.request import Request, RequestId, SamplingParams, StopRules

DEFAULT_TTL_S = 3600.0
LONGEST_TTL_S = 7 * 24 * 3600.0
_CONTINUATIONS = ("0", "A")
_encoder = msgspec.json.Encoder()


async def create_prefix(http: HttpRequest) -> Response:
    """Pin one prefix; answers when it is computed."""
    state: ApiState = http.app.state.api
    arrival_s = state.clock.now()
    body = await read_body(http, PrefixBody, state.max_body_bytes)
    model = state.models.find_local(body.model)
    ttl_s = DEFAULT_TTL_S if body.ttl_s is None else body.ttl_s
    if not 0 < ttl_s <= LONGEST_TTL_S:
        raise InvalidRequest(f"ttl_s is {ttl_s:g}; it must be above 0 and at most {LONGEST_TTL_S:,.0f}", param="ttl_s")
    reply = await pin_prefix(model, body, f"prefix-{http.state.request_id}", arrival_s, ttl_s)
    return Response(_encoder.encode(reply), media_type="application/json")


async def pin_prefix(
    model: ServedModel, body: PrefixBody, request_id: str, arrival_s: float, ttl_s: float
) -> PrefixReply:
    """Compute and pin what `body` says. Raises InvalidRequest, PromptTooLong, and RequestFailed."""
    tokens = await _tokens(model, body)
    if not tokens:
        raise InvalidRequest("the prefix has no tokens; send a longer one", param="prompt")
    if len(tokens) >= model.max_context:
        raise PromptTooLong(
            f"the prefix has {len(tokens):,} tokens; '{model.name}' accepts {model.max_context - 1:,}; shorten it"
        )
    request = Request(
        request_id=RequestId(request_id),
        model=model.name,
        prompt=tuple(tokens),
        sampling=SamplingParams(temperature=0.0),
        stop=StopRules(max_tokens=0),
        arrival_s=arrival_s,
        pin_s=ttl_s,
    )
    answer = await collect(model.upstream, request)
    if answer.choices[0].finish is not FinishReason.LENGTH:
        raise RequestFailed("the prefix was not computed: the server is shutting down")
    return PrefixReply(model.name, len(tokens), answer.usage.cached_tokens, None if math.isinf(ttl_s) else ttl_s)


async def _tokens(model: ServedModel, body: PrefixBody) -> list[int]:
    """Return the prefix as token ids."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("send either 'prompt' or 'messages'", param="prompt")
    if isinstance(body.prompt, list):
        model.check_token_ids(body.prompt, "prompt")
        return body.prompt
    if body.prompt is not None:
        return await encode_text(model, body.prompt, add_special=True)
    messages = body.messages or []
    if not messages or messages[-1].role not in ("system", "developer"):
        return await _rendered(model, messages, body)
    first, second = [
        await _rendered(model, [*messages, Message(role="user", content=text)], body) for text in _CONTINUATIONS
    ]
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))]


async def _rendered(model: ServedModel, messages: list[Message], body: PrefixBody) -> list[int]:
    return await encode_chat(
        model,
        messages,
        add_generation_prompt=False,
        continue_final=False,
        add_special=False,
        variables=body.chat_template_kwargs or {},
    )
