"""POST /v1/prefixes: compute a prompt's KV and keep it for a while, so that answers that begin with it start at once.

Owns nothing: the prompt runs as a request without output that asks for its blocks to be pinned: in its caller's name,
so that what a key may ask, limits, budgets and whose prefixes are whose hold here as everywhere. `serve --warm` pins in
nobody's name, by `app`.
A conversation that ends with a system message stands for all that continue it: its prefix is what two different
continuations have in common, whatever the template writes around them.
"""

from __future__ import annotations

import math
from contextlib import closing

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from headrace.api.answers import collect
from headrace.api.body import read_body
from headrace.api.openai_replies import PrefixReply
from headrace.api.openai_types import Message, PrefixBody
from headrace.api.prompts import encode_chat, encode_text
from headrace.api.served import ServedModel
from headrace.api.sse import until_disconnect
from headrace.api.visit import Visit
from headrace.core.delta import FinishReason
from headrace.core.errors import HeadraceError, InvalidRequest, PromptTooLong, RequestCancelled
from headrace.core.protocols import Upstream
from headrace.core.request import Knock, Request, RequestId, SamplingParams, StopRules

DEFAULT_TTL_S = 3600.0
LONGEST_TTL_S = 7 * 24 * 3600.0
_CONTINUATIONS = ("0", "A")
_encoder = msgspec.json.Encoder()


async def create_prefix(visit: Visit) -> Response:
    """Pin one prefix; answers when it is computed."""
    state = visit.state
    arrival_s = state.clock.now()
    body = await read_body(visit, PrefixBody, state.max_body_bytes)
    model = state.models.find_local(body.model)
    ttl_s = DEFAULT_TTL_S if body.ttl_s is None else body.ttl_s
    if not 0 < ttl_s <= LONGEST_TTL_S:
        raise InvalidRequest(f"ttl_s is {ttl_s:g}; it must be above 0 and at most {LONGEST_TTL_S:,.0f}", param="ttl_s")
    request_id = RequestId(f"prefix-{visit.request_id}")
    with closing(state.calls.open(visit.caller, visit.request_id, trail=visit.trail)) as call:
        visit.call = call
        try:
            call.knock(model, Knock(request_id=request_id, model=model.name, arrival_s=arrival_s))
            request = await _request(model, body, request_id, arrival_s, ttl_s)
            call.bind(model, [request])
            reply = await until_disconnect(visit.scope, visit.receive, call.run(_pinned(call, request)))
        except HeadraceError as err:
            call.tell_headers(err)
            raise
    return Response(_encoder.encode(reply), headers=call.headers, media_type="application/json")


async def pin_prefix(
    model: ServedModel, body: PrefixBody, request_id: str, arrival_s: float, ttl_s: float
) -> PrefixReply:
    """Compute and pin what `body` says in nobody's name. Raises what any request may meet."""
    request = await _request(model, body, RequestId(request_id), arrival_s, ttl_s)
    return await _pinned(model.upstream, request)


async def _request(
    model: ServedModel, body: PrefixBody, request_id: RequestId, arrival_s: float, ttl_s: float
) -> Request:
    """Return the request without output that pins what `body` says."""
    tokens = await _tokens(model, body)
    if not tokens:
        raise InvalidRequest("the prefix has no tokens; send a longer one", param="prompt")
    if len(tokens) >= model.max_context:
        raise PromptTooLong(
            f"the prefix has {len(tokens):,} tokens; '{model.name}' accepts {model.max_context - 1:,}; shorten it"
        )
    return Request(
        request_id=request_id,
        model=model.name,
        prompt=tuple(tokens),
        sampling=SamplingParams(temperature=0.0),
        stop=StopRules(max_tokens=0),
        arrival_s=arrival_s,
        pin_s=ttl_s,
    )


async def _pinned(upstream: Upstream, request: Request) -> PrefixReply:
    answer = await collect(upstream, request)
    if answer.choices[0].finish is not FinishReason.LENGTH:
        raise RequestCancelled("the prefix is not kept: its request was cancelled before it was computed")
    usage, ttl_s = answer.usage, request.pin_s
    cost = UNSET if usage.cost_nano is None else usage.cost_nano / 1e9
    return PrefixReply(
        request.model, len(request.prompt), usage.cached_tokens, None if math.isinf(ttl_s) else ttl_s, cost=cost
    )


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
