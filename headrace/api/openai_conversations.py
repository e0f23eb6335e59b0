"""The OpenAI wire's words as `core.conversation` values, for requests that go to remote upstreams.

Owns nothing. Invariant: every field of the body that asks for something is in the result or is refused by name, because
its answer could not be told on this wire or because it makes no sense.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Literal, NamedTuple, TypeVar

import msgspec

from headrace.api.body import is_neutral
from headrace.api.openai_types import ANY, NEUTRAL, ChatBody, CompletionBody, ContentPart, GenerationBody, Message
from headrace.api.params import MAX_LOGPROBS, optional_bounded
from headrace.core import conversation as core
from headrace.core.conversation import CacheHint, Conversation, ForeignPart, Given, ImagePart, Json, TextPart
from headrace.core.errors import InvalidRequest, MalformedBody, UnsupportedParameter

T = TypeVar("T")

# Their answers have parts that this server does not pass on, or they are superseded on this wire.
_UNANSWERABLE = (
    "audio", "prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids", "web_search_options", "functions",
    "function_call", "modalities",
)  # fmt: skip
_INTERPRETED = frozenset({
    *("model", "messages", "prompt", "stream", "stream_options", "logprobs", "top_logprobs", "n"),
    *("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop", "stop_token_ids"),
    *("min_tokens", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
    *("continue_final_message", "add_generation_prompt", "deadline_ms"),
    *("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort"),
    *_UNANSWERABLE,
})  # fmt: skip
_FOREIGN_PARTS = ("input_audio", "file", "video_url", "audio_url", "refusal")


class _CacheControl(msgspec.Struct):
    type: Literal["ephemeral"]
    ttl: str | None = None


class _ImageUrl(msgspec.Struct):
    url: str
    detail: str | None = None


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class _Tool(msgspec.Struct):
    type: str
    function: _Function | None = None
    cache_control: _CacheControl | None = None


class _CalledFunction(msgspec.Struct):
    name: str
    arguments: str = "{}"


class _Call(msgspec.Struct):
    id: str
    function: _CalledFunction


class _ChosenFunction(msgspec.Struct):
    name: str


class _Choice(msgspec.Struct):
    type: Literal["function"]
    function: _ChosenFunction


def conversation_of(body: ChatBody) -> Conversation:
    """Return what a chat body says. Raises InvalidRequest, MalformedBody or UnsupportedParameter."""
    if not body.messages:
        raise InvalidRequest("'messages' is empty; send at least one message", param="messages")
    if body.add_generation_prompt is not None and body.add_generation_prompt is bool(body.continue_final_message):
        raise InvalidRequest(
            "a remote upstream gets either add_generation_prompt or continue_final_message; set one of them",
            param="add_generation_prompt",
        )
    parallel = body.parallel_tool_calls
    return Conversation(
        messages=tuple(_message(i, message) for i, message in enumerate(body.messages)),
        tools=tuple(_tool(i, tool) for i, tool in enumerate(_convert("tools", body.tools or [], list[object]))),
        tool_choice=_tool_choice(body.tool_choice),
        parallel_tool_calls=None if parallel is None else _convert("parallel_tool_calls", parallel, bool),
        response_format=None if _is_text(body.response_format) else _json(body.response_format),
        reasoning=_reasoning(body.reasoning_effort),
        continues_last=bool(body.continue_final_message),
    )


def given_of(body: ChatBody | CompletionBody) -> Given:
    """Return the values that a body gives. Raises InvalidRequest or UnsupportedParameter."""
    _refuse_unanswerable(body)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    completion_tokens = body.max_completion_tokens if isinstance(body, ChatBody) else None
    others = _others(body)
    return Given(
        wire="openai",
        wants_stream=bool(body.stream),
        max_tokens=body.max_tokens if completion_tokens is None else completion_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=None if body.logit_bias is None else tuple(body.logit_bias.items()),
        seed=body.seed,
        stop=None if stop is None else tuple(stop),
        stop_token_ids=None if body.stop_token_ids is None else tuple(body.stop_token_ids),
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        include_stop_text=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        n=body.n,
        logprobs=_logprobs(body),
        extras=others.extras,
        labels=others.labels,
    )


def _refuse_unanswerable(body: GenerationBody) -> None:
    for name, value in _wishes(type(body), "unanswerable").of(body):
        if not is_neutral(name, value):
            raise UnsupportedParameter(f"'{name}' is not passed on to remote upstreams; leave it out", param=name)
    if body.stream_options is not None and body.stream_options.continuous_usage_stats:
        name = "stream_options.continuous_usage_stats"
        raise UnsupportedParameter(f"'{name}' is not known for remote upstreams; leave it out", param=name)


def _logprobs(body: ChatBody | CompletionBody) -> int | None:
    if isinstance(body, CompletionBody):
        return optional_bounded("logprobs", body.logprobs, 0, MAX_LOGPROBS)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    top = optional_bounded("top_logprobs", body.top_logprobs, 0, MAX_LOGPROBS) or 0
    return top if body.logprobs else None


class _Others(NamedTuple):
    """What nothing here interprets."""

    extras: tuple[tuple[str, Json], ...] = ()
    labels: tuple[tuple[str, Json], ...] = ()


_NO_OTHERS = _Others()


def _others(body: GenerationBody) -> _Others:
    """Collect the fields that nothing here interprets; those that ask for nothing are left out."""
    found = _wishes(type(body), "uninterpreted").of(body)
    if not found:
        return _NO_OTHERS
    extras: list[tuple[str, Json]] = []
    labels: list[tuple[str, Json]] = []
    for name, value in found:
        if name == "service_tier" and value != "flex":
            continue  # what every server does anyhow
        if ANY in NEUTRAL.get(name, ()):
            labels.append((name, _json(value)))
        elif not is_neutral(name, value):
            extras.append((name, _json(value)))
    return _Others(tuple(extras), tuple(labels))


class _Wishes(NamedTuple):
    """Some fields of one type of body, and what reads them all in one step: a body has fifty, most calls use five."""

    names: tuple[str, ...]
    read: Callable[[GenerationBody], tuple[object, ...]]
    nothing: tuple[None, ...]

    def of(self, body: GenerationBody) -> list[tuple[str, object]]:
        """Return (name, value) of those that are given."""
        values = self.read(body)
        if values == self.nothing:
            return []
        return [(name, value) for name, value in zip(self.names, values, strict=True) if value is not None]


@cache
def _wishes(body_type: type[GenerationBody], which: Literal["unanswerable", "uninterpreted"]) -> _Wishes:
    if which == "unanswerable":
        names = tuple(name for name in _UNANSWERABLE if name in body_type.__struct_fields__)
    else:
        names = tuple(name for name in body_type.__struct_fields__ if name not in _INTERPRETED)
    return _Wishes(names, attrgetter(*names), (None,) * len(names))


def _message(i: int, message: Message) -> core.Message:
    where = f"messages[{i}]"
    if message.role == "function":
        raise UnsupportedParameter(
            f"{where}.role 'function' is not passed on to remote upstreams; use 'tool'", param=f"{where}.role"
        )
    parts = _parts(where, message)
    if message.role == "tool":
        if not isinstance(message.tool_call_id, str):
            raise InvalidRequest(f"'{where}.tool_call_id' is missing", param=f"{where}.tool_call_id")
        inner = tuple(part for part in parts if isinstance(part, TextPart | ImagePart | ForeignPart))
        parts = [core.ToolResultPart(message.tool_call_id, inner)]
    elif message.role == "assistant":
        parts = [*_thoughts(where, message), *parts, *_assistant_fields(message), *_calls(where, message)]
    elif message.content is None:
        raise InvalidRequest(f"'{where}.content' is missing", param=f"{where}.content")
    role: core.Role = "system" if message.role == "developer" else message.role
    return core.Message(role, tuple(parts), message.name)


def _parts(where: str, message: Message) -> list[core.Part]:
    if message.content is None:
        return []
    if isinstance(message.content, str):
        return [TextPart(message.content)]
    return [_part(f"{where}.content[{j}]", part) for j, part in enumerate(message.content)]


def _part(where: str, part: ContentPart) -> TextPart | ImagePart | ForeignPart:
    hint = _hint(f"{where}.cache_control", part.cache_control)
    if part.type == "text":
        if part.text is None:
            raise InvalidRequest(f"'{where}.text' is missing", param=f"{where}.text")
        return TextPart(part.text, hint)
    if part.type == "image_url":
        value = {"url": part.image_url} if isinstance(part.image_url, str) else part.image_url
        image = _convert(f"{where}.image_url", value, _ImageUrl)
        return ImagePart(image.url, image.detail, hint)
    if part.type in _FOREIGN_PARTS:
        return ForeignPart("openai", part.type, _json({"type": part.type, part.type: getattr(part, part.type)}))
    raise UnsupportedParameter(f"'{where}' is of type '{part.type}', which is not known", param=f"{where}.type")


def _thoughts(where: str, message: Message) -> list[core.Part]:
    if not message.reasoning_content:
        return []
    return [core.ReasoningPart(_convert(f"{where}.reasoning_content", message.reasoning_content, str))]


def _assistant_fields(message: Message) -> list[core.Part]:
    """Keep what an answer of this wire carries beside text, for when it comes back as history."""
    named = (("refusal", message.refusal), ("audio", message.audio), ("annotations", message.annotations))
    return [ForeignPart("openai", name, _json(value)) for name, value in named if value]


def _calls(where: str, message: Message) -> list[core.Part]:
    if message.function_call is not None:
        raise UnsupportedParameter(
            f"'{where}.function_call' is not passed on to remote upstreams; use tool_calls",
            param=f"{where}.function_call",
        )
    calls = _convert(f"{where}.tool_calls", message.tool_calls or [], list[_Call])
    return [core.ToolCallPart(call.id, call.function.name, call.function.arguments) for call in calls]


def _tool(i: int, value: object) -> core.Tool | core.ForeignTool:
    tool = _convert(f"tools[{i}]", value, _Tool)
    if tool.type != "function":
        return core.ForeignTool("openai", tool.type, _json(value))
    if tool.function is None:
        raise InvalidRequest(f"'tools[{i}].function' is missing", param=f"tools[{i}].function")
    function = tool.function
    return core.Tool(
        name=function.name,
        description=function.description,
        parameters=None if function.parameters is None else _json(function.parameters),
        is_strict=function.strict,
        cache=None if tool.cache_control is None else CacheHint(tool.cache_control.ttl),
    )


def _tool_choice(value: object) -> core.ToolChoice | None:
    if value is None:
        return None
    if value == "auto" or value == "none" or value == "required":
        return core.ToolChoice(value)
    return core.ToolChoice("named", _convert("tool_choice", value, _Choice).function.name)


def _reasoning(effort: object) -> core.Reasoning | None:
    if effort is None:
        return None
    level = _convert("reasoning_effort", effort, str)
    return core.Reasoning(is_enabled=level != "none", effort=level)


def _hint(where: str, value: object) -> CacheHint | None:
    return None if value is None else CacheHint(_convert(where, value, _CacheControl).ttl)


def _is_text(response_format: object) -> bool:
    return response_format is None or response_format == {"type": "text"}


def _convert(where: str, value: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as err:
        raise MalformedBody(f"'{where}': {err}", param=where) from err


def _json(value: object) -> Json:
    return Json(msgspec.json.encode(value))
