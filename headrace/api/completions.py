"""POST /v1/completions: one prompt or many, as text or token ids, continued; with `echo`, scored as well.

Owns the spelling of deltas as text completions. Choice numbers run over prompts first: prompt p, choice c → p·n + c.
Invariant: with `echo`, the text and the logprobs of a choice begin with the prompt's own tokens, the first without a
logprob, as evaluation harnesses expect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from msgspec import UNSET
from starlette.types import ASGIApp

from headrace.api.answers import Answer, check_ending, close, collect, prompt_logprobs_reply, running_usage, stream
from headrace.api.body import read_body, refuse_unsupported
from headrace.api.calls import Call
from headrace.api.exchange import respond
from headrace.api.merging import merge
from headrace.api.openai_replies import TextChoice, TextReply, UsageReply, finish_reply, sum_usages, usage_reply
from headrace.api.openai_types import CompletionBody
from headrace.api.params import MAX_LOGPROBS, Wanted, build_request, knock_of, optional_bounded
from headrace.api.prompts import encode_text
from headrace.api.remote import text_request
from headrace.api.served import RemoteModel, ServedModel
from headrace.api.sse import DONE, event
from headrace.api.text_logprobs import LogprobColumns
from headrace.api.visit import Visit
from headrace.core.delta import Delta, PositionLogprobs, Usage
from headrace.core.errors import InvalidRequest
from headrace.core.protocols import Upstream
from headrace.core.request import Request

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 256
_encoder = msgspec.json.Encoder()


async def create_completion(visit: Visit) -> ASGIApp:
    """Serve one completion request."""
    state = visit.state
    arrival_s = state.clock.now()
    body = await read_body(visit, CompletionBody, state.max_body_bytes)

    async def begin(call: Call) -> CompletionWire:
        model = call.find(state.models, body.model)
        reply_id = f"cmpl-{visit.request_id}"
        if isinstance(model, RemoteModel):
            words = _prompts(body)
            requests = [text_request(body, p, model, f"{reply_id}-{i}", arrival_s) for i, p in enumerate(words)]
        else:
            refuse_unsupported(body)
            call.knock(model, knock_of(body, model, f"{reply_id}-0", arrival_s))
            prompts = await _token_prompts(body, model)
            requests = [_core_request(body, p, model, f"{reply_id}-{i}", arrival_s) for i, p in enumerate(prompts)]
        requests = [call.fit(request) for request in requests]
        call.bind(model, requests)
        return CompletionWire(reply_id, requests, model, call, int(state.wall_s()), body)

    return await respond(visit, body, begin)


async def _token_prompts(body: CompletionBody, model: ServedModel) -> list[list[int]]:
    """Return token ids per prompt, whatever shape the caller used."""
    add_special = True if body.add_special_tokens is None else body.add_special_tokens
    token_prompts: list[list[int]] = []
    for part in _prompts(body):
        if isinstance(part, str):
            token_prompts.append(await encode_text(model, part, add_special=add_special))
        else:
            model.check_token_ids(part, "prompt")
            token_prompts.append(part)
    return token_prompts


def _prompts(body: CompletionBody) -> list[str | list[int]]:
    """Return one text or list of token ids per prompt, whatever shape the caller used."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(isinstance(part, int) for part in prompt):
        prompt = [[part for part in prompt if isinstance(part, int)]]
    if not prompt or len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"'prompt' holds {len(prompt)} prompts; send 1 to {MAX_PROMPTS}", param="prompt")
    prompts: list[str | list[int]] = []
    for part in prompt:
        if isinstance(part, int):
            raise InvalidRequest("'prompt' mixes token ids with texts or lists; send one kind", param="prompt")
        prompts.append(part)
    return prompts


def _core_request(
    body: CompletionBody, prompt: list[int], model: ServedModel, request_id: str, arrival_s: float
) -> Request:
    logprobs = optional_bounded("logprobs", body.logprobs, 0, MAX_LOGPROBS)
    scores_prompt = logprobs if body.echo else None
    wanted = Wanted(
        prompt=tuple(prompt),
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        may_be_empty=bool(body.echo),  # an evaluation that wants the prompt's own scores only
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs if scores_prompt is None else scores_prompt,
    )
    return build_request(body, wanted, model, request_id, arrival_s)


class CompletionWire:
    """Spells the deltas of one call's requests. Holds what streams need to remember between chunks."""

    def __init__(
        self,
        reply_id: str,
        requests: list[Request],
        model: ServedModel | RemoteModel,
        upstream: Upstream,
        created: int,
        body: CompletionBody,
    ) -> None:
        options = body.stream_options
        self._id = reply_id
        self._requests = requests
        self._model = model
        self._upstream = upstream
        self._created = created
        self._tokenizer = model.tokenizer if isinstance(model, ServedModel) else None
        self._echo = bool(body.echo) and self._tokenizer is not None  # a remote upstream says the prompt itself
        self._wants_prompt_logprobs = body.prompt_logprobs is not None
        self._has_usage_chunk = bool(options and options.include_usage)
        self._has_running_usage = bool(options and options.continuous_usage_stats)
        self._num_prompt = sum(len(request.prompt) for request in requests)
        self._num_generated = 0
        self._usages: list[Usage] = []  # of a stream
        self._columns: dict[int, LogprobColumns] = {}
        self._echoed: set[int] = set()
        self._prompt_scores: dict[int, tuple[PositionLogprobs | None, ...]] = {}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield framed events, `[DONE]` last."""
        if len(self._requests) == 1:
            deltas = self._upstream.generate(self._requests[0])
            try:
                async for delta in deltas:
                    if delta.finish is not None:
                        check_ending(delta)
                    if (chunk := self._chunk(0, delta)) is not None:
                        yield chunk
            finally:
                await close(deltas)
        else:
            sources = [stream(self._upstream, request) for request in self._requests]
            async with aclosing(merge(sources)) as merged:
                async for prompt_idx, delta in merged:
                    if (chunk := self._chunk(prompt_idx, delta)) is not None:
                        yield chunk
        if self._has_usage_chunk:
            yield event(_encoder.encode(self._reply([], usage_reply(sum_usages(self._usages)))))
        yield DONE

    def _chunk(self, prompt_idx: int, delta: Delta) -> bytes | None:
        """Spell a delta as an event; None if it says nothing."""
        if delta.usage is not None:
            self._usages.append(delta.usage)
        self._num_generated += len(delta.token_ids)
        choice = self._chunk_choice(prompt_idx, delta)
        if choice.text or choice.finish_reason is not None or choice.logprobs is not None:
            return event(_encoder.encode(self._reply([choice], self._usage_so_far())))
        return None

    async def reply(self) -> TextReply:
        """Return the whole answer."""
        answers = await self._answers()
        choices = [choice for i, answer in enumerate(answers) for choice in self._whole_choices(i, answer)]
        return self._reply(choices, usage_reply(sum_usages([answer.usage for answer in answers])))

    async def _answers(self) -> list[Answer]:
        """Wait for the answers of all prompts: in this task, where there is one."""
        if len(self._requests) == 1:
            return [await collect(self._upstream, self._requests[0])]
        tasks = [asyncio.ensure_future(collect(self._upstream, request)) for request in self._requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _whole_choices(self, prompt_idx: int, answer: Answer) -> list[TextChoice]:
        """Spell an answer by the same path as a stream: one delta per choice."""
        deltas = (
            Delta(
                index=index,
                text=choice.text,
                logprobs=tuple(choice.logprobs),
                prompt_logprobs=answer.prompt_logprobs,
                finish=choice.finish,
                stop_match=choice.stop_match,
            )
            for index, choice in enumerate(answer.choices)
        )
        return [self._chunk_choice(prompt_idx, delta) for delta in deltas]

    def _chunk_choice(self, prompt_idx: int, delta: Delta) -> TextChoice:
        request = self._requests[prompt_idx]
        number = prompt_idx * request.n + delta.index
        text = delta.text
        if delta.prompt_logprobs:
            self._prompt_scores[prompt_idx] = delta.prompt_logprobs
        columns = None
        if request.sampling.logprobs is not None:
            columns = self._columns.setdefault(number, LogprobColumns(self._tokenizer, request.sampling.logprobs))
        if self._echo and number not in self._echoed:
            self._echoed.add(number)
            text = self._prompt_text(request) + text
            if columns is not None:
                columns.add_prompt(request.prompt, self._prompt_scores.get(prompt_idx, ()))
        if columns is not None:
            columns.add_output(delta.logprobs)
        return TextChoice(
            number,
            text,
            columns.take() if columns is not None else None,
            finish_reply(delta.finish) if delta.finish is not None else None,
            self._model.stop_reason(delta.stop_match),
            prompt_logprobs_reply(delta.prompt_logprobs) if self._wants_prompt_logprobs else UNSET,
        )

    def _prompt_text(self, request: Request) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(list(request.prompt), skip_special=True)

    def _usage_so_far(self) -> UsageReply | msgspec.UnsetType | None:
        if self._has_running_usage:
            return running_usage(self._num_prompt, self._num_generated)
        return None if self._has_usage_chunk else UNSET

    def _reply(self, choices: list[TextChoice], usage: UsageReply | msgspec.UnsetType | None) -> TextReply:
        fingerprint = self._model.fingerprint or UNSET
        return TextReply(self._id, self._created, self._model.name, choices, usage, fingerprint)
