"""A core request as the body of an OpenAI call, in the dialect of one profile.

Owns nothing. Invariant: every value that the caller gave is in the body, under the name this kind of server knows, or
the request is refused by that name. What the caller did not give is left to the server's own defaults.
Source: OpenAI API reference (chat, completions); the servers' own references for what `profiles.toml` lists.
"""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

import msgspec

from headrace.core.conversation import (
    CacheHint,
    Conversation,
    ForeignPart,
    ForeignTool,
    Given,
    ImagePart,
    Json,
    Message,
    Reasoning,
    ReasoningPart,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from headrace.core.request import Request
from headrace.gateway.upstream.profiles import Profile
from headrace.gateway.upstream.refusals import unsupported
from headrace.gateway.upstream.replay import is_replayable

Fields = dict[str, object]

# What only some servers know: the field of `Given`, by the name of the wire.
_SAMPLING = {
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
    "seed": "seed",
    "stop": "stop",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_tokens",
    "ignore_eos": "ignore_eos",
    "stop_token_ids": "stop_token_ids",
    "include_stop_str_in_output": "include_stop_text",
    "skip_special_tokens": "skip_special_tokens",
}
_sampling_of = attrgetter(*_SAMPLING.values())
_NOTHING_GIVEN = (None,) * len(_SAMPLING)

_LOW_BUDGET, _MEDIUM_BUDGET = 2048, 8192  # thinking tokens up to which an effort is called low and medium


class Dialect(NamedTuple):
    """Who is spoken to: the upstream's name for refusals, its profile, and the profile's name."""

    upstream: str
    profile: Profile
    kind: str


def encode_request(request: Request, model: str, dialect: Dialect) -> bytes:
    """Return the JSON body. Raises Failure (MISPLACED) for what the server does not understand."""
    given = request.given
    assert given is not None, "a request for a remote upstream carries what was given"
    fields: Fields = {"model": model}
    if isinstance(request.source, Conversation):
        fields["messages"] = _messages(request.source, dialect)
        _add_tools(fields, request.source, dialect)
        if request.source.continues_last:
            if not dialect.profile.continues_last:
                raise unsupported("messages: an answer to go on with", dialect.upstream, dialect.kind)
            fields.update(continue_final_message=True, add_generation_prompt=False)
        if request.source.response_format is not None:
            fields["response_format"] = msgspec.Raw(request.source.response_format)
    else:
        if request.source is None and not dialect.profile.token_prompts:
            raise unsupported("prompt (token ids)", dialect.upstream, dialect.kind)
        fields["prompt"] = list(request.prompt) if request.source is None else request.source
    _add_values(fields, given, dialect)
    _add_logprobs(fields, given, dialect, is_chat=isinstance(request.source, Conversation))
    _add_extras(fields, given, dialect)
    if isinstance(request.source, Conversation) and request.source.reasoning is not None:
        _add_reasoning(fields, request.source.reasoning, dialect)
    if dialect.profile.resumable and is_replayable(request):
        fields["return_token_ids"] = True
    fields["stream"] = given.wants_stream
    if given.wants_stream:
        fields["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(fields)


def encode_count(request: Request, model: str, dialect: Dialect) -> bytes:
    """Return the JSON body of a call of vLLM's /tokenize. Raises Failure (MISPLACED) for what has no tokens there."""
    if not isinstance(request.source, Conversation):
        raise unsupported("prompt", dialect.upstream, dialect.kind)
    fields: Fields = {"model": model, "messages": _messages(request.source, dialect)}
    if request.source.tools:
        fields["tools"] = [_tool(tool, dialect) for tool in request.source.tools]
    if request.source.continues_last:
        fields.update(continue_final_message=True, add_generation_prompt=False)
    return msgspec.json.encode(fields)


def _add_values(fields: Fields, given: Given, dialect: Dialect) -> None:
    profile = dialect.profile
    values = _sampling_of(given)
    if values != _NOTHING_GIVEN:
        for name, value in zip(_SAMPLING, values, strict=True):
            if value is None:
                continue
            if name not in profile.sampling:
                raise unsupported(name, dialect.upstream, dialect.kind)
            fields[profile.names.get(name, name)] = dict(value) if name == "logit_bias" else value
    if given.max_tokens is not None:
        fields[profile.max_tokens if "messages" in fields else "max_tokens"] = given.max_tokens
    if given.temperature is not None:
        fields["temperature"] = given.temperature
    if given.top_p is not None:
        fields["top_p"] = given.top_p
    if given.n is not None and given.n > 1:
        if not profile.has_n:
            raise unsupported("n", dialect.upstream, dialect.kind)
        fields["n"] = given.n


def _add_logprobs(fields: Fields, given: Given, dialect: Dialect, *, is_chat: bool) -> None:
    if given.logprobs is None:
        return
    if not dialect.profile.has_logprobs:
        raise unsupported("logprobs", dialect.upstream, dialect.kind)
    if is_chat:
        fields["logprobs"] = True
        if given.logprobs:
            fields["top_logprobs"] = given.logprobs
    else:
        fields["logprobs"] = given.logprobs


def _add_extras(fields: Fields, given: Given, dialect: Dialect) -> None:
    for name, value in given.extras:
        if given.wire != "openai" or not dialect.profile.takes_extra(name):
            raise unsupported(name, dialect.upstream, dialect.kind)
        fields[name] = msgspec.Raw(value)
    for name, value in given.labels:
        if (given.wire == "openai" or name == "user") and dialect.profile.takes_extra(name):
            fields[name] = msgspec.Raw(value)


def _add_reasoning(fields: Fields, reasoning: Reasoning, dialect: Dialect) -> None:
    ways = dialect.profile.reasoning
    effort = reasoning.effort
    if effort is None and reasoning.budget_tokens is not None and "template" not in ways:
        budget = reasoning.budget_tokens
        effort = "low" if budget <= _LOW_BUDGET else "medium" if budget <= _MEDIUM_BUDGET else "high"
    if effort is not None and "effort" in ways:
        fields["reasoning_effort"] = effort
    elif "template" in ways:
        given = fields.get("chat_template_kwargs")
        variables = msgspec.json.decode(given, type=Fields) if isinstance(given, msgspec.Raw) else {}
        variables.setdefault("enable_thinking", reasoning.is_enabled is not False)
        fields["chat_template_kwargs"] = variables
    elif reasoning.is_enabled is not False:
        raise unsupported("reasoning_effort", dialect.upstream, dialect.kind)


def _add_tools(fields: Fields, conversation: Conversation, dialect: Dialect) -> None:
    if conversation.tools:
        fields["tools"] = [_tool(tool, dialect) for tool in conversation.tools]
    asks = conversation.tool_choice is not None or conversation.parallel_tool_calls is not None
    if asks and not dialect.profile.has_tool_choice:
        is_default = conversation.tool_choice in (None, ToolChoice("auto")) and conversation.parallel_tool_calls in (
            None,
            True,
        )
        if not is_default:
            raise unsupported("tool_choice", dialect.upstream, dialect.kind)
        return
    choice = conversation.tool_choice
    if choice is not None:
        named = {"type": "function", "function": {"name": choice.name}}
        fields["tool_choice"] = named if choice.mode == "named" else choice.mode
    if conversation.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = conversation.parallel_tool_calls


def _tool(tool: Tool | ForeignTool, dialect: Dialect) -> object:
    if isinstance(tool, ForeignTool):
        if tool.wire != "openai":
            raise unsupported(f"tools: {tool.kind}", dialect.upstream, dialect.kind)
        return msgspec.Raw(tool.payload)
    function: Fields = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = msgspec.Raw(tool.parameters)
    if tool.is_strict is not None:
        function["strict"] = tool.is_strict
    return _hinted({"type": "function", "function": function}, tool.cache, dialect)


def _messages(conversation: Conversation, dialect: Dialect) -> list[Fields]:
    messages: list[Fields] = []
    for message in conversation.messages:
        part = message.parts[0] if len(message.parts) == 1 and message.name is None else None
        if isinstance(part, TextPart) and part.cache is None:  # nearly always
            messages.append({"role": message.role, "content": part.text})
            continue
        results = [part for part in message.parts if isinstance(part, ToolResultPart)]
        for result in results:
            messages.extend(_result_messages(result, dialect))
        if len(results) < len(message.parts) or not message.parts:
            messages.append(_message(message, dialect))
    return messages


def _message(message: Message, dialect: Dialect) -> Fields:
    spelled: Fields = {"role": message.role}
    content = [
        _content_part(part, dialect)
        for part in message.parts
        if isinstance(part, TextPart | ImagePart) or (isinstance(part, ForeignPart) and message.role != "assistant")
    ]
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    spelled["content"] = _shortest(content) if content or not calls else None
    if message.name is not None:
        spelled["name"] = message.name
    if calls:
        spelled["tool_calls"] = [_call(call) for call in calls]
    thoughts = "".join(part.text for part in message.parts if isinstance(part, ReasoningPart))
    if thoughts and dialect.profile.takes_reasoning:
        spelled["reasoning_content"] = thoughts
    if message.role == "assistant":
        _add_assistant_parts(spelled, message, dialect)
    return spelled


def _add_assistant_parts(spelled: Fields, message: Message, dialect: Dialect) -> None:
    """Put back fields of an assistant's message that only OpenAI's wire has, such as its audio."""
    for part in message.parts:
        if isinstance(part, ForeignPart):
            if part.wire != "openai":
                raise unsupported(f"messages: {part.kind}", dialect.upstream, dialect.kind)
            spelled[part.kind] = msgspec.Raw(part.payload)


def _result_messages(result: ToolResultPart, dialect: Dialect) -> list[Fields]:
    """Spell a tool's result; its pictures follow as the user's, because tool messages carry text only."""
    texts = [_content_part(part, dialect) for part in result.parts if isinstance(part, TextPart)]
    others = [_content_part(part, dialect) for part in result.parts if not isinstance(part, TextPart)]
    content = _shortest(texts)
    if result.is_error and isinstance(content, str):
        content = f"Error: {content}"
    messages: list[Fields] = [{"role": "tool", "tool_call_id": result.call_id, "content": content}]
    if others:
        messages.append({"role": "user", "content": others})
    return messages


def _content_part(part: TextPart | ImagePart | ForeignPart, dialect: Dialect) -> object:
    match part:
        case TextPart():
            return _hinted({"type": "text", "text": part.text}, part.cache, dialect)
        case ImagePart():
            image: Fields = {"url": part.url}
            if part.detail is not None:
                image["detail"] = part.detail
            return _hinted({"type": "image_url", "image_url": image}, part.cache, dialect)
        case ForeignPart():
            if part.wire != "openai":
                raise unsupported(f"messages: {part.kind}", dialect.upstream, dialect.kind)
            return msgspec.Raw(part.payload)


def _shortest(content: list[object]) -> object:
    """Return one text as a string: every server takes that, some take nothing else."""
    if not content:
        return ""
    first = content[0]
    if len(content) == 1 and isinstance(first, dict) and first.keys() == {"type", "text"}:
        return first["text"]
    return content


def _call(call: ToolCallPart) -> Fields:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _hinted(fields: Fields, hint: CacheHint | None, dialect: Dialect) -> Fields:
    if hint is not None and dialect.profile.keeps_cache_hints:
        fields["cache_control"] = cache_control(hint)
    return fields


def cache_control(hint: CacheHint) -> Fields:
    """Spell a hint as both wires do."""
    return {"type": "ephemeral"} if hint.ttl is None else {"type": "ephemeral", "ttl": hint.ttl}


def json_of(value: object) -> Json:
    """Encode one value."""
    return Json(msgspec.json.encode(value))
