"""POST /v1/chat/completions: messages in, one answer or a stream of chunks out.

Owns the spelling of deltas as chat chunks and of whole answers as chat replies; the work is the upstream's.
Invariant: the role comes with the first chunk that has content, never earlier, so a client's time to first token
is the model's; the finish reason rides on the chunk of the last token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import msgspec
from msgspec import UNSET
from starlette.types import ASGIApp

from headrace.api.answers import ChoiceAnswer, check_ending, close, collect, prompt_logprobs_reply, running_usage
from headrace.api.body import read_body, refuse_unsupported
from headrace.api.calls import Call
from headrace.api.exchange import respond
from headrace.api.openai_replies import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprob,
    ChatLogprobs,
    ChatReply,
    DeltaMessage,
    FunctionReply,
    ToolCallReply,
    TopLogprob,
    UsageReply,
    finish_reply,
    usage_reply,
)
from headrace.api.openai_types import ChatBody
from headrace.api.params import MAX_LOGPROBS, Wanted, build_request, knock_of, optional_bounded
from headrace.api.prompts import encode_chat
from headrace.api.remote import chat_request
from headrace.api.served import RemoteModel, ServedModel
from headrace.api.sse import DONE, event
from headrace.api.visit import Visit
from headrace.core.delta import Delta, PositionLogprobs, ToolCallDelta
from headrace.core.errors import InvalidRequest
from headrace.core.protocols import Upstream
from headrace.core.request import Request

_encoder = msgspec.json.Encoder()


async def create_chat_completion(visit: Visit) -> ASGIApp:
    """Serve one chat request."""
    state = visit.state
    arrival_s = state.clock.now()
    body = await read_body(visit, ChatBody, state.max_body_bytes)

    async def begin(call: Call) -> ChatWire:
        model = call.find(state.models, body.model)
        reply_id = f"chatcmpl-{visit.request_id}"
        if isinstance(model, RemoteModel):
            request = chat_request(body, model, reply_id, arrival_s)
        else:
            refuse_unsupported(body)
            call.knock(model, knock_of(body, model, reply_id, arrival_s))
            request = await _core_request(body, model, reply_id, arrival_s)
        request = call.fit(request)
        call.bind(model, [request])
        return ChatWire(request, model, call, int(state.wall_s()), body)

    return await respond(visit, body, begin)


async def _core_request(body: ChatBody, model: ServedModel, request_id: str, arrival_s: float) -> Request:
    continue_final = bool(body.continue_final_message)
    prompt = await encode_chat(
        model,
        body.messages,
        add_generation_prompt=not continue_final if body.add_generation_prompt is None else body.add_generation_prompt,
        continue_final=continue_final,
        add_special=bool(body.add_special_tokens),
        variables=body.chat_template_kwargs or {},
    )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    top = optional_bounded("top_logprobs", body.top_logprobs, 0, MAX_LOGPROBS) or 0
    wanted = Wanted(
        prompt=tuple(prompt),
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=top if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )
    return build_request(body, wanted, model, request_id, arrival_s)


class ChatWire:
    """Spells one request's deltas. Holds which choices have had their role."""

    def __init__(
        self, request: Request, model: ServedModel | RemoteModel, upstream: Upstream, created: int, body: ChatBody
    ) -> None:
        options = body.stream_options
        self._request = request
        self._model = model
        self._upstream = upstream
        self._created = created
        self._has_usage_chunk = bool(options and options.include_usage)
        self._has_running_usage = bool(options and options.continuous_usage_stats)
        self._fingerprint = model.fingerprint or UNSET
        self._num_generated = 0
        self._introduced: set[int] = set()
        self._has_prompt_ids_told = False
        self._has_token_ids = bool(body.return_token_ids)
        self._untold_ids: dict[int, list[int]] = {}  # by choice: tokens whose text is held back

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield framed events, `[DONE]` last."""
        usage = None
        deltas = self._upstream.generate(self._request)
        try:
            async for delta in deltas:
                if delta.finish is not None:
                    check_ending(delta)
                usage = delta.usage or usage
                self._num_generated += len(delta.token_ids)
                if self._has_token_ids:
                    self._untold_ids.setdefault(delta.index, []).extend(delta.token_ids)
                if delta.text or delta.finish is not None or delta.has_words or delta.logprobs or delta.prompt_logprobs:
                    yield event(_encoder.encode(self._chunk(delta)))
        finally:
            await close(deltas)
        if self._has_usage_chunk and usage is not None:
            chunk = ChatChunk(self._request.request_id, self._created, self._model.name, [], usage_reply(usage))
            chunk.system_fingerprint = self._fingerprint
            yield event(_encoder.encode(chunk))
        yield DONE

    def _chunk(self, delta: Delta) -> ChatChunk:
        message = DeltaMessage(content=delta.text) if delta.text else DeltaMessage()
        if delta.reasoning or delta.tool_calls or delta.refusal:
            message.reasoning_content = delta.reasoning or UNSET
            message.refusal = delta.refusal or UNSET
            message.tool_calls = [_call_piece(piece) for piece in delta.tool_calls] or UNSET
        if delta.index not in self._introduced:
            self._introduced.add(delta.index)
            message.role = "assistant"
            message.content = delta.text
        choice = ChatChunkChoice(
            delta.index,
            message,
            chat_logprobs(delta.logprobs) if delta.logprobs else None,
            finish_reply(delta.finish) if delta.finish is not None else None,
        )
        if delta.finish is not None:
            choice.stop_reason = self._model.stop_reason(delta.stop_match)
        chunk = ChatChunk(self._request.request_id, self._created, self._model.name, [choice], self._usage_so_far())
        chunk.system_fingerprint = self._fingerprint
        if delta.prompt_logprobs:
            chunk.prompt_logprobs = prompt_logprobs_reply(delta.prompt_logprobs)
        if self._has_token_ids:
            choice.token_ids = self._untold_ids.pop(delta.index, [])
            if not self._has_prompt_ids_told:
                self._has_prompt_ids_told = True
                chunk.prompt_token_ids = self._request.prompt
        return chunk

    def _usage_so_far(self) -> UsageReply | msgspec.UnsetType | None:
        if self._has_running_usage:
            return running_usage(len(self._request.prompt), self._num_generated)
        return None if self._has_usage_chunk else UNSET

    async def reply(self) -> ChatReply:
        """Return the whole answer."""
        answer = await collect(self._upstream, self._request)
        return ChatReply(
            self._request.request_id,
            self._created,
            self._model.name,
            [self._choice(index, choice) for index, choice in enumerate(answer.choices)],
            usage_reply(answer.usage),
            prompt_logprobs_reply(answer.prompt_logprobs),
            self._request.prompt if self._has_token_ids else UNSET,
            self._fingerprint,
        )

    def _choice(self, index: int, choice: ChoiceAnswer) -> ChatChoice:
        wants_logprobs = self._request.sampling.logprobs is not None
        return ChatChoice(
            index,
            _message(choice),
            chat_logprobs(choice.logprobs) if wants_logprobs else None,
            finish_reply(choice.finish),
            self._model.stop_reason(choice.stop_match),
            choice.token_ids if self._has_token_ids else UNSET,
        )


def _call_piece(piece: ToolCallDelta) -> ToolCallReply:
    is_first = bool(piece.call_id or piece.name)
    return ToolCallReply(
        FunctionReply(piece.arguments, piece.name or UNSET),
        piece.index,
        piece.call_id or UNSET,
        "function" if is_first else UNSET,
    )


def _message(choice: ChoiceAnswer) -> AssistantMessage:
    text = choice.text
    if not choice.others:
        return AssistantMessage(text)
    calls = [
        ToolCallReply(FunctionReply(call.arguments, call.name), UNSET, call.call_id, "function")
        for call in choice.tool_calls
    ]
    refusal = choice.refusal
    content = text if text or not (calls or refusal) else None
    return AssistantMessage(content, choice.reasoning or UNSET, refusal or UNSET, calls or UNSET)


def chat_logprobs(positions: Sequence[PositionLogprobs]) -> ChatLogprobs:
    """Spell logprobs of output tokens as the chat wire does."""
    return ChatLogprobs(
        [
            ChatLogprob(
                position.chosen.text,
                position.chosen.logprob,
                list(position.chosen.token_bytes),
                [TopLogprob(token.text, token.logprob, list(token.token_bytes)) for token in position.top],
            )
            for position in positions
        ]
    )
