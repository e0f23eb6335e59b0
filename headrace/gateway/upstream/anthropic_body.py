"""A core request as the body of an Anthropic call.

Owns nothing. Invariant: every value that the caller gave is in the body, or the request is refused by its name; caching
hints keep their places. System messages are collected at the top, the wire's only place for them.
Source: Anthropic API reference, Messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

import msgspec

from headrace.core.conversation import (
    CacheHint,
    Conversation,
    ForeignPart,
    ForeignTool,
    Given,
    ImagePart,
    Part,
    Reasoning,
    ReasoningPart,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from headrace.core.request import Request
from headrace.gateway.upstream.refusals import unsupported

Fields = dict[str, object]

# Thinking tokens for an effort of the OpenAI wire; the least that this wire takes is 1,024.
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768}
_LEAST_BUDGET = 1024
_KIND = "anthropic"


def encode_request(request: Request, model: str, upstream: str, default_max_tokens: int) -> bytes:
    """Return the JSON body of a message call. Raises Failure (MISPLACED) for what this wire cannot say."""
    given = request.given
    assert given is not None, "a request for a remote upstream carries what was given"
    conversation = _conversation(request, upstream)
    _refuse_values(given, upstream)
    fields = _prompt_fields(conversation, model, given, upstream)
    max_tokens = default_max_tokens if given.max_tokens is None else given.max_tokens
    fields["max_tokens"] = max_tokens
    values: Fields = {
        "temperature": given.temperature,
        "top_p": given.top_p,
        "top_k": given.top_k,
        "stop_sequences": list(given.stop) if given.stop else None,
    }
    fields.update({name: value for name, value in values.items() if value is not None})
    fields["stream"] = given.wants_stream
    if conversation.reasoning is not None:
        _add_thinking(fields, conversation.reasoning, max_tokens)
    for name, value in given.labels:
        if name == "user":
            fields["metadata"] = {"user_id": msgspec.Raw(value)}
    return msgspec.json.encode(fields)


def encode_count(request: Request, model: str, upstream: str) -> bytes:
    """Return the JSON body of a call that counts tokens. Raises Failure (MISPLACED)."""
    given = request.given
    assert given is not None, "a request for a remote upstream carries what was given"
    conversation = _conversation(request, upstream)
    return msgspec.json.encode(_prompt_fields(conversation, model, given, upstream))


def _conversation(request: Request, upstream: str) -> Conversation:
    if not isinstance(request.source, Conversation):
        raise unsupported("prompt", upstream, _KIND)
    return request.source


def _refuse_values(given: Given, upstream: str) -> None:
    """Refuse what this wire has no word for."""
    values: Fields = {
        "n": given.n if given.n != 1 else None,
        "seed": given.seed,
        "logprobs": given.logprobs,
        "logit_bias": given.logit_bias,
        "presence_penalty": given.presence_penalty or None,
        "frequency_penalty": given.frequency_penalty or None,
        "min_p": given.min_p,
        "typical_p": given.typical_p,
        "repetition_penalty": given.repetition_penalty,
        "min_tokens": given.min_tokens,
        "ignore_eos": given.ignore_eos,
        "stop_token_ids": given.stop_token_ids or None,
        "include_stop_str_in_output": given.include_stop_text,
    }
    for name, value in values.items():
        if value is not None:
            raise unsupported(name, upstream, _KIND)


def _prompt_fields(conversation: Conversation, model: str, given: Given, upstream: str) -> Fields:
    fields: Fields = {"model": model, "messages": _messages(conversation, upstream)}
    system = [part for message in conversation.messages if message.role == "system" for part in message.parts]
    if system:
        fields["system"] = _content(system, upstream)
    if conversation.tools:
        fields["tools"] = [_tool(tool, upstream) for tool in conversation.tools]
        choice = _tool_choice(conversation.tool_choice, conversation.parallel_tool_calls)
        if choice is not None:
            fields["tool_choice"] = choice
    if conversation.response_format is not None:
        _add_format(fields, conversation.response_format, upstream)
    for name, value in given.extras:
        if given.wire != "anthropic":
            raise unsupported(name, upstream, _KIND)
        fields[name] = msgspec.Raw(value)
    for name, value in given.labels:
        if name == "cache_control":
            fields[name] = msgspec.Raw(value)
    return fields


def _messages(conversation: Conversation, upstream: str) -> list[Fields]:
    """Spell the turns; those of one side that follow each other become one, as results of tools must."""
    turns: list[tuple[str, list[Part]]] = []
    for message in conversation.messages:
        if message.role == "system":
            continue
        if message.name is not None:
            raise unsupported("messages: name", upstream, _KIND)
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(message.parts)
        else:
            turns.append((role, list(message.parts)))
    return [{"role": role, "content": _content(parts, upstream)} for role, parts in turns]


def _content(parts: Sequence[Part], upstream: str) -> object:
    """Return one plain text as a string, anything else as blocks."""
    if len(parts) == 1 and isinstance(parts[0], TextPart) and parts[0].cache is None:
        return parts[0].text
    return [block for part in parts for block in _blocks(part, upstream)]


def _blocks(part: Part, upstream: str) -> Iterable[object]:
    match part:
        case TextPart():
            if part.text:  # the wire refuses empty ones
                yield _hinted({"type": "text", "text": part.text}, part.cache)
        case ImagePart():
            yield _hinted({"type": "image", "source": _source(part.url)}, part.cache)
        case ReasoningPart():
            if part.signature is not None:  # thoughts of another maker cannot be proved to this one
                yield {"type": "thinking", "thinking": part.text, "signature": part.signature}
        case ToolCallPart():
            call: Fields = {"type": "tool_use", "id": part.call_id, "name": part.name, "input": _object(part.arguments)}
            yield _hinted(call, part.cache)
        case ToolResultPart():
            result: Fields = {"type": "tool_result", "tool_use_id": part.call_id}
            if part.parts:
                result["content"] = _content(part.parts, upstream)
            if part.is_error:
                result["is_error"] = True
            yield _hinted(result, part.cache)
        case ForeignPart():
            if part.wire != _KIND:
                raise unsupported(f"messages: {part.kind}", upstream, _KIND)
            yield msgspec.Raw(part.payload)
        case never:
            assert_never(never)


def _source(url: str) -> Fields:
    """Spell where a picture is: inside a `data:` URL, or behind another one."""
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, _, data = url.removeprefix("data:").partition(",")
    return {"type": "base64", "media_type": head.partition(";")[0], "data": data}


def _object(arguments: str) -> msgspec.Raw:
    """Return a call's arguments as the JSON object that this wire wants; none are an empty one."""
    try:
        if isinstance(msgspec.json.decode(arguments), dict):
            return msgspec.Raw(arguments.encode())
    except msgspec.DecodeError:
        pass
    return msgspec.Raw(msgspec.json.encode({"arguments": arguments} if arguments.strip() else {}))


def _tool(tool: Tool | ForeignTool, upstream: str) -> object:
    if isinstance(tool, ForeignTool):
        if tool.wire != _KIND:
            raise unsupported(f"tools: {tool.kind}", upstream, _KIND)
        return msgspec.Raw(tool.payload)
    schema = {"type": "object", "properties": {}} if tool.parameters is None else msgspec.Raw(tool.parameters)
    spelled: Fields = {"name": tool.name, "input_schema": schema}
    if tool.description is not None:
        spelled["description"] = tool.description
    if tool.is_strict is not None:
        spelled["strict"] = tool.is_strict
    return _hinted(spelled, tool.cache)


def _tool_choice(choice: ToolChoice | None, parallel: bool | None) -> Fields | None:
    if choice is None and parallel is not False:
        return None
    modes = {"auto": "auto", "none": "none", "required": "any", "named": "tool"}
    spelled: Fields = {"type": "auto" if choice is None else modes[choice.mode]}
    if choice is not None and choice.name is not None:
        spelled["name"] = choice.name
    if parallel is False and spelled["type"] != "none":
        spelled["disable_parallel_tool_use"] = True
    return spelled


class _Schema(msgspec.Struct):
    schema: msgspec.Raw


class _Format(msgspec.Struct):
    type: str
    json_schema: _Schema | None = None


def _add_format(fields: Fields, response_format: bytes, upstream: str) -> None:
    """Ask for an answer that follows a schema; this wire has no plain JSON mode."""
    try:
        wanted = msgspec.json.decode(response_format, type=_Format)
    except msgspec.ValidationError:
        wanted = _Format("?")
    if wanted.json_schema is None:
        raise unsupported(f"response_format: {wanted.type}", upstream, _KIND)
    fields["output_config"] = {"format": {"type": "json_schema", "schema": wanted.json_schema.schema}}


def _add_thinking(fields: Fields, reasoning: Reasoning, max_tokens: int) -> None:
    """Ask for thoughts with a budget below the bound of the answer, as the wire demands."""
    if reasoning.is_enabled is False:
        fields["thinking"] = {"type": "disabled"}
        return
    budget = reasoning.budget_tokens
    if budget is None and reasoning.effort is not None:
        budget = max(_LEAST_BUDGET, min(_BUDGETS.get(reasoning.effort, _BUDGETS["medium"]), max_tokens // 2))
    fields["thinking"] = {"type": "adaptive"} if budget is None else {"type": "enabled", "budget_tokens": budget}


def _hinted(fields: Fields, hint: CacheHint | None) -> Fields:
    if hint is not None:
        fields["cache_control"] = {"type": "ephemeral"} if hint.ttl is None else {"type": "ephemeral", "ttl": hint.ttl}
    return fields
