"""`LLM`: a model in this process, without a server. A blocking face on the same engine that the server runs.

Owns one event loop in a thread of its own, and the engine on it, until `close`. Requests go through the same checks and
defaults as HTTP requests. Calls may come from several threads; prompts of one call share the engine's steps.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import aclosing
from itertools import count
from typing import Literal, TypedDict, TypeVar, Unpack, cast

import msgspec
import uvloop

from headrace.api.answers import collect, stream
from headrace.api.openai_types import CompletionBody, Message
from headrace.api.params import MAX_LOGPROBS, Wanted, build_request, optional_bounded
from headrace.api.prompts import encode_chat, encode_text
from headrace.app.completions import Completion, completion_of
from headrace.app.hardware import detect
from headrace.app.loading import load_model, open_model, served_model
from headrace.app.plan import Plan
from headrace.app.pulling import ensure_pulled
from headrace.core.clock import MonotonicClock
from headrace.core.errors import InvalidRequest
from headrace.core.request import Request
from headrace.core.settings import Settings, load

T = TypeVar("T")
Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, str]]
_MAX_TOGETHER = 256  # prompts of one call inside the engine; the others wait here, whatever its queue holds


class SamplingParams(TypedDict, total=False):
    """Sampling and length, as on the wire. What is left out comes from the model, then from OpenAI's defaults.

    n answers are drawn, of best_of the likeliest; with use_beam_search they are searched for. logprobs and
    prompt_logprobs are how many alternatives to tell besides each token's own log probability; max_tokens is the rest
    of the context when left out. attention_window and attention_sinks narrow what tokens attend to: the last and the
    first so many.
    """

    n: int
    best_of: int
    use_beam_search: bool
    length_penalty: float
    early_stopping: bool
    logprobs: int
    prompt_logprobs: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[str, float]
    seed: int
    stop: str | list[str]
    stop_token_ids: list[int]
    min_tokens: int
    ignore_eos: bool
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    attention_window: int
    attention_sinks: int


class LLM:
    """A loaded model.

    model     known name or source, as in `headrace serve`; None: the default model. Pulled if it is not here.
    settings  None: file and environment, as the command line has them
    Raises ConfigError and its leaves when the model cannot be loaded. Close it, or use it as a context manager.
    """

    def __init__(self, model: str | None = None, *, settings: Settings | None = None) -> None:
        chosen = load() if settings is None else settings
        name = chosen.first_model if model is None else model
        # Nobody else waits here, and whoever asks for a thousand answers waits for them.
        patient = msgspec.structs.replace(chosen.scheduling, max_wait_s=None, max_waiting_tokens=None)
        chosen = msgspec.structs.replace(chosen, scheduling=patient)
        clock = MonotonicClock()
        loaded = load_model(open_model(ensure_pulled(chosen, name), chosen, detect()), clock)
        self._clock = clock
        self._engine = loaded.engine
        self._plan = loaded.plan
        self._vocab_size = loaded.vocab_size
        self._settle = loaded.settle
        self._model = served_model(loaded, int(time.time()))
        self._numbers = count()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="headrace-llm", daemon=True)
        self._thread.start()
        try:
            self._run(self._engine.start())
        except BaseException:
            self._end_loop()
            raise

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    def settle(self) -> None:
        """Wait until the engine is as fast as it gets: what is measured before belongs to the start."""
        self._settle()

    @property
    def vocab_size(self) -> int:
        """Tokens that the model has logits for."""
        return self._vocab_size

    @property
    def prompt_vocab_size(self) -> int:
        """Tokens that a prompt of ids may hold: those the tokenizer knows."""
        return min(self._vocab_size, self._model.tokenizer.vocab_size)

    @property
    def plan(self) -> Plan:
        """How its engine was built, each value with its reason."""
        return self._plan

    @property
    def has_chat_template(self) -> bool:
        """Say whether `chat` can be used."""
        return self._model.template is not None

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Unpack[SamplingParams],
    ) -> list[Completion]:
        """Continue one or several prompts, texts or token ids, together. One completion per prompt, in order.

        sampling_params  for all prompts, or one for each; options given by name go before them
        """
        return self._run(self._generate(_as_list(prompts), _each(sampling_params, options)))

    def chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        **options: Unpack[SamplingParams],
    ) -> Completion:
        """Answer a conversation: messages with `role` and `content`."""
        return self._run(self._chat(messages, _body({**(sampling_params or {}), **options})))

    def stream(self, prompt: Prompt, **options: Unpack[SamplingParams]) -> Generator[str, None, None]:
        """Yield the continuation's text as it is made. Closing the iterator ends the work."""
        body = _stream_body(options)
        return self._iterate(lambda: self._request(body, self._encode(prompt)))

    def stream_chat(self, messages: Conversation, **options: Unpack[SamplingParams]) -> Generator[str, None, None]:
        """Yield the answer's text as it is made. Closing the iterator ends the work."""
        body = _stream_body(options)
        return self._iterate(lambda: self._request(body, self._render(messages)))

    def close(self) -> None:
        """Stop the engine and free its memory. Idempotent."""
        if self._loop.is_closed():
            return
        self._run(self._engine.stop())
        self._end_loop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _generate(self, prompts: list[Prompt], bodies: CompletionBody | list[CompletionBody]) -> list[Completion]:
        if isinstance(bodies, CompletionBody):
            bodies = [bodies] * len(prompts)
        if len(bodies) != len(prompts):
            raise InvalidRequest(
                f"{len(prompts)} prompts and {len(bodies)} sampling_params; give one for all, or one for each",
                param="sampling_params",
            )
        places = asyncio.Semaphore(_MAX_TOGETHER)

        async def answer(prompt: Prompt, body: CompletionBody) -> Completion:
            async with places:
                return await self._complete(await self._request(body, self._encode(prompt)))

        tasks = [asyncio.ensure_future(answer(*each)) for each in zip(prompts, bodies, strict=True)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _chat(self, messages: Conversation, body: CompletionBody) -> Completion:
        return await self._complete(await self._request(body, self._render(messages)))

    async def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return await encode_text(self._model, prompt, add_special=True)
        self._model.check_token_ids(prompt, "prompt")
        return list(prompt)

    async def _render(self, messages: Conversation) -> list[int]:
        turns = [Message(role=_role(turn["role"]), content=turn["content"]) for turn in messages]
        return await encode_chat(
            self._model, turns, add_generation_prompt=True, continue_final=False, add_special=False, variables={}
        )

    async def _request(self, body: CompletionBody, prompt: Coroutine[object, object, list[int]]) -> Request:
        wanted = Wanted(
            prompt=tuple(await prompt),
            max_tokens=body.max_tokens,
            logprobs=optional_bounded("logprobs", body.logprobs, 0, MAX_LOGPROBS),
            prompt_logprobs=body.prompt_logprobs,
        )
        return build_request(body, wanted, self._model, f"llm-{next(self._numbers)}", self._clock.now())

    async def _complete(self, request: Request) -> Completion:
        answer = await collect(self._model.upstream, request)
        return completion_of(answer, request.prompt, has_logprobs=request.sampling.logprobs is not None)

    def _iterate(self, make_request: Callable[[], Coroutine[object, object, Request]]) -> Generator[str, None, None]:
        """Yield an answer's text in the caller's thread while the loop's thread makes it."""
        pieces: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async with aclosing(stream(self._model.upstream, await make_request())) as deltas:
                    async for delta in deltas:
                        if delta.text:
                            pieces.put(delta.text)
                pieces.put(None)
            except Exception as err:
                pieces.put(err)

        task = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            task.cancel()

    def _run(self, work: Coroutine[object, object, T]) -> T:
        """Do `work` on the loop's thread and wait for it; an interrupt here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _each(
    given: SamplingParams | Sequence[SamplingParams] | None, options: SamplingParams
) -> CompletionBody | list[CompletionBody]:
    """Return one body for all prompts, or one for each of several parameters."""
    if given is None or isinstance(given, Mapping):
        return _body({**(given or {}), **options})
    return [_body({**each, **options}) for each in given]


def _body(options: SamplingParams) -> CompletionBody:
    return CompletionBody(prompt="", **options)


def _stream_body(options: SamplingParams) -> CompletionBody:
    """Return the body of a stream, which is the text of one answer. Raises InvalidRequest for what it cannot tell."""
    for name, value in (("n", options.get("n")), ("logprobs", options.get("logprobs"))):
        if value is not None and (name, value) != ("n", 1):
            raise InvalidRequest(f"{name} is {value}; a stream is the text of one answer: use generate", param=name)
    return CompletionBody(prompt="", stream=True, **options)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Tell one prompt from several: a text, or token ids, is one."""
    if isinstance(prompts, str):
        return [prompts]
    texts: list[Prompt] = []
    token_ids: list[int] = []
    for part in prompts:
        if isinstance(part, int):
            token_ids.append(part)
        else:
            texts.append(part)
    if token_ids and texts:
        raise InvalidRequest("the prompts mix token ids with texts; give one kind", param="prompt")
    return [token_ids] if token_ids else texts


def _role(name: str) -> Literal["system", "user", "assistant"]:
    if name in ("system", "user", "assistant"):
        return cast('Literal["system", "user", "assistant"]', name)
    raise InvalidRequest(f"message role '{name}' is not served; use system, user or assistant", param="role")
