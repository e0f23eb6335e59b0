"""POST /v1/messages and /v1/messages/count_tokens: the Anthropic wire over the same upstreams.

Owns the spelling of deltas as this wire's events and messages. A model of this process gets the conversation through
its chat template; a remote one gets the words.
Invariant: the same checks, limits and cancellation as on the OpenAI wire; only the spelling differs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from headrace.api.answers import check_ending, close
from headrace.api.anthropic_conversations import conversation_of, given_of, passed_on
from headrace.api.anthropic_replies import (
    MessageDelta,
    MessageReply,
    MessageStart,
    MessageStop,
    StopDelta,
    TokenCount,
    message_usage,
    stop_reason,
)
from headrace.api.anthropic_types import CountTokensBody, MessagesBody
from headrace.api.body import read_body
from headrace.api.calls import Call
from headrace.api.exchange import respond
from headrace.api.local_conversations import encode_conversation
from headrace.api.message_blocks import BlockStream, whole_blocks
from headrace.api.openai_types import GenerationBody
from headrace.api.params import Wanted, build_request
from headrace.api.remote import remote_request
from headrace.api.served import RemoteModel, ServedModel
from headrace.api.visit import Visit
from headrace.core.conversation import Given
from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import InvalidRequest, UnsupportedParameter
from headrace.core.protocols import Upstream
from headrace.core.request import Knock, Request, RequestId

_encoder = msgspec.json.Encoder()


async def create_message(visit: Visit) -> ASGIApp:
    """Serve one message request."""
    state = visit.state
    arrival_s = state.clock.now()
    body = await read_body(visit, MessagesBody, state.max_body_bytes)

    async def begin(call: Call) -> MessagesWire:
        model = call.find(state.models, body.model)
        reply_id = f"msg_{visit.request_id}"
        if isinstance(model, ServedModel):
            call.knock(model, Knock(request_id=RequestId(reply_id), model=model.name, arrival_s=arrival_s))
        request = call.fit(await _core_request(visit, body, model, reply_id, arrival_s))
        call.bind(model, [request])
        return MessagesWire(request, model, call)

    return await respond(visit, body, begin)


async def count_tokens(visit: Visit) -> Response:
    """Count the tokens of a prompt without answering it."""
    state = visit.state
    arrival_s = state.clock.now()
    body = await read_body(visit, CountTokensBody, state.max_body_bytes)
    model = state.models.find(body.model)
    conversation = conversation_of(body)
    if isinstance(model, RemoteModel):
        if model.count_tokens is None:
            raise InvalidRequest(f"the upstream of '{model.name}' cannot count tokens", param="model")
        given = Given(wire="anthropic", extras=passed_on(body))
        request = remote_request(model, conversation, given, f"msg_{visit.request_id}", arrival_s)
        num_tokens = await model.count_tokens(request)
    else:
        _refuse_passed_on(body)
        num_tokens = len(await encode_conversation(model, conversation))
    return Response(_encoder.encode(TokenCount(num_tokens)), media_type="application/json")


async def _core_request(
    visit: Visit, body: MessagesBody, model: ServedModel | RemoteModel, reply_id: str, arrival_s: float
) -> Request:
    conversation = conversation_of(body)
    if isinstance(model, RemoteModel):
        given = given_of(body, visit.header(b"anthropic-beta"))
        return remote_request(model, conversation, given, reply_id, arrival_s)
    _refuse_passed_on(body)
    wanted = Wanted(
        prompt=tuple(await encode_conversation(model, conversation)),
        max_tokens=body.max_tokens,
        logprobs=None,
        prompt_logprobs=None,
    )
    sampling = GenerationBody(
        stream=body.stream,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=body.stop_sequences or None,
    )
    return build_request(sampling, wanted, model, reply_id, arrival_s)


def _refuse_passed_on(body: CountTokensBody) -> None:
    """Raise UnsupportedParameter for a field that only upstreams of this wire understand."""
    for name, _ in passed_on(body):
        raise UnsupportedParameter(f"'{name}' is not supported by this model; leave it out", param=name)


class MessagesWire:
    """Spells one request's deltas as Anthropic events."""

    def __init__(self, request: Request, model: ServedModel | RemoteModel, upstream: Upstream) -> None:
        self._request = request
        self._model = model
        self._upstream = upstream

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield framed events, `message_stop` last. The first comes with the first delta, never earlier."""
        blocks = BlockStream()
        is_started = False
        usage = Usage(prompt_tokens=len(self._request.prompt), completion_tokens=0)
        last: Delta | None = None
        deltas = self._upstream.generate(self._request)
        try:
            async for delta in deltas:
                if delta.finish is not None:
                    check_ending(delta)
                if not is_started:
                    is_started = True
                    yield _event(MessageStart(self._reply([], None, usage)))
                events = [_event(event) for event in blocks.push(delta)]
                if events:
                    yield b"".join(events)
                usage = delta.usage or usage
                last = delta if delta.finish is not None else last
        finally:
            await close(deltas)
        ending = StopDelta(*self._stop(last))
        closing = [_event(event) for event in blocks.close()]
        closing += [_event(MessageDelta(ending, message_usage(usage))), _event(MessageStop())]
        yield b"".join(closing)

    async def reply(self) -> MessageReply:
        """Return the whole answer."""
        usage = Usage(prompt_tokens=0, completion_tokens=0)
        kept: list[Delta] = []
        deltas = self._upstream.generate(self._request)
        try:
            async for delta in deltas:
                if delta.finish is not None:
                    check_ending(delta)
                kept.append(delta)
                usage = delta.usage or usage
        finally:
            await close(deltas)
        last = next((delta for delta in reversed(kept) if delta.finish is not None), None)
        reply = self._reply([], last, usage)
        reply.content = whole_blocks(kept)
        return reply

    def _reply(self, content: list[object], last: Delta | None, usage: Usage) -> MessageReply:
        reason, sequence = self._stop(last) if last is not None else (None, None)
        return MessageReply(self._request.request_id, self._model.name, [], reason, sequence, message_usage(usage))

    def _stop(self, last: Delta | None) -> tuple[str, str | None]:
        """Return the reason and, if that is why, the caller's own stop sequence."""
        if last is None or last.finish is None:
            return stop_reason(FinishReason.STOP, None), None
        matched = last.stop_match if last.stop_match in self._request.stop.stop_strings else None
        sequence = matched if isinstance(matched, str) else None
        return stop_reason(last.finish, sequence), sequence


def _event(payload: msgspec.Struct) -> bytes:
    """Frame one event under its name, which is its type."""
    name = payload.__struct_config__.tag
    return b"event: %b\ndata: %b\n\n" % (str(name).encode(), _encoder.encode(payload))
