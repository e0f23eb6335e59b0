"""The Anthropic wire's words as `core.conversation` values.

Owns nothing. Invariant: every field of the body that asks for something is in the result or is refused by name; blocks
and tools of kinds that are not known here travel as they came, for upstreams of this wire.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from headrace.api.anthropic_types import AnthropicMessage, Block, CountTokensBody, MessagesBody, ToolChoiceBody
from headrace.core import conversation as core
from headrace.core.conversation import (
    CacheHint,
    Conversation,
    ForeignPart,
    ForeignTool,
    Given,
    ImagePart,
    Json,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from headrace.core.errors import InvalidRequest, MalformedBody

T = TypeVar("T")

_PASSED_ON = (
    "context_management", "mcp_servers", "output_config", "output_format", "service_tier", "container",
    "inference_geo", "speed",
)  # fmt: skip


class _CacheControl(msgspec.Struct):
    type: Literal["ephemeral"]
    ttl: str | None = None


class _TextBlock(msgspec.Struct):
    text: str
    cache_control: _CacheControl | None = None
    citations: list[object] | None = None


class _Source(msgspec.Struct):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class _ImageBlock(msgspec.Struct):
    source: _Source
    cache_control: _CacheControl | None = None


class _ToolUse(msgspec.Struct):
    id: str
    name: str
    input: dict[str, object]
    cache_control: _CacheControl | None = None


class _ToolResult(msgspec.Struct):
    tool_use_id: str
    content: str | list[Block] | None = None
    is_error: bool | None = None
    cache_control: _CacheControl | None = None


class _ThinkingBlock(msgspec.Struct):
    thinking: str
    signature: str | None = None


class _Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, object]
    description: str | None = None
    strict: bool | None = None
    cache_control: _CacheControl | None = None


def conversation_of(body: CountTokensBody) -> Conversation:
    """Return what a body says. Raises InvalidRequest or MalformedBody."""
    if not body.messages:
        raise InvalidRequest("'messages' is empty; send at least one message", param="messages")
    messages = [_message(f"messages[{i}]", message) for i, message in enumerate(body.messages)]
    if body.system:
        system = [TextPart(body.system)] if isinstance(body.system, str) else _blocks("system", body.system)
        messages.insert(0, core.Message("system", tuple(system)))
    choice = body.tool_choice
    return Conversation(
        messages=tuple(messages),
        tools=tuple(_tool(f"tools[{i}]", tool) for i, tool in enumerate(body.tools or ())),
        tool_choice=None if choice is None else _tool_choice(choice),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        reasoning=_reasoning(body),
        continues_last=body.messages[-1].role == "assistant",
    )


def given_of(body: MessagesBody, betas: str | None) -> Given:
    """Return the values that a body gives. `betas` is the `anthropic-beta` header."""
    return Given(
        wire="anthropic",
        wants_stream=bool(body.stream),
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=tuple(body.stop_sequences) if body.stop_sequences else None,
        extras=passed_on(body),
        labels=_labels(body),
        headers=(("anthropic-beta", betas),) if betas else (),
    )


def _labels(body: MessagesBody) -> tuple[tuple[str, Json], ...]:
    """Collect what changes no answer: who asked, and the hint that the whole prompt is worth keeping."""
    user = body.metadata.user_id if body.metadata is not None else None
    named = (("user", user), ("cache_control", body.cache_control))
    return tuple((name, json_of(value)) for name, value in named if value is not None)


def passed_on(body: CountTokensBody) -> tuple[tuple[str, Json], ...]:
    """Collect the fields that only an upstream of this wire understands; what every server does anyhow is left out."""
    found = [(name, getattr(body, name, None)) for name in _PASSED_ON]
    return tuple(
        (name, json_of(value))
        for name, value in found
        if value is not None and (name, value) not in (("service_tier", "auto"), ("mcp_servers", []))
    )


def json_of(value: object) -> Json:
    """Encode one value."""
    return Json(msgspec.json.encode(value))


def _message(where: str, message: AnthropicMessage) -> core.Message:
    if isinstance(message.content, str):
        return core.Message(message.role, (TextPart(message.content),))
    return core.Message(message.role, tuple(_blocks(f"{where}.content", message.content)))


def _blocks(where: str, blocks: list[Block]) -> list[core.Part]:
    return [_block(f"{where}[{i}]", block) for i, block in enumerate(blocks)]


def _block(where: str, block: Block) -> core.Part:
    match block.get("type"):
        case "text":
            text = _convert(where, block, _TextBlock)
            return _foreign("text with citations", block) if text.citations else TextPart(text.text, _hint(text))
        case "image":
            return _image(where, block)
        case "tool_use":
            use = _convert(where, block, _ToolUse)
            return ToolCallPart(use.id, use.name, msgspec.json.encode(use.input).decode(), _hint(use))
        case "tool_result":
            return _result(where, block)
        case "thinking":
            thought = _convert(where, block, _ThinkingBlock)
            return ReasoningPart(thought.thinking, thought.signature)
        case str(kind):
            return _foreign(kind, block)
        case _:
            raise MalformedBody(f"'{where}.type' is missing", param=f"{where}.type")


def _image(where: str, block: Block) -> ImagePart | ForeignPart:
    image = _convert(where, block, _ImageBlock)
    source = image.source
    if source.type == "base64" and source.media_type is not None and source.data is not None:
        return ImagePart(f"data:{source.media_type};base64,{source.data}", None, _hint(image))
    if source.type == "url" and source.url is not None:
        return ImagePart(source.url, None, _hint(image))
    return _foreign("image", block)


def _result(where: str, block: Block) -> ToolResultPart:
    result = _convert(where, block, _ToolResult)
    if isinstance(result.content, str):
        parts: list[core.Part] = [TextPart(result.content)]
    else:
        parts = _blocks(f"{where}.content", result.content or [])
    inner = tuple(part for part in parts if isinstance(part, TextPart | ImagePart | ForeignPart))
    if len(inner) < len(parts):
        raise InvalidRequest(f"'{where}.content' holds a block that no tool gives back", param=f"{where}.content")
    return ToolResultPart(result.tool_use_id, inner, bool(result.is_error), _hint(result))


def _tool(where: str, block: Block) -> core.Tool | ForeignTool:
    kind = block.get("type")
    if isinstance(kind, str) and kind != "custom":
        return ForeignTool("anthropic", kind, json_of(block))
    tool = _convert(where, block, _Tool)
    return core.Tool(tool.name, tool.description, json_of(tool.input_schema), tool.strict, _hint(tool))


def _tool_choice(choice: ToolChoiceBody) -> core.ToolChoice:
    match choice.type:
        case "any":
            return core.ToolChoice("required")
        case "tool":
            if choice.name is None:
                raise InvalidRequest("'tool_choice.name' is missing", param="tool_choice.name")
            return core.ToolChoice("named", choice.name)
        case "auto" | "none":
            return core.ToolChoice(choice.type)


def _reasoning(body: CountTokensBody) -> core.Reasoning | None:
    if body.thinking is None:
        return None
    if body.thinking.type == "adaptive":
        return core.Reasoning(is_enabled=True)
    return core.Reasoning(is_enabled=body.thinking.type == "enabled", budget_tokens=body.thinking.budget_tokens)


def _foreign(kind: str, block: Block) -> ForeignPart:
    return ForeignPart("anthropic", kind, json_of(block))


def _hint(block: _TextBlock | _ImageBlock | _ToolUse | _ToolResult | _Tool) -> CacheHint | None:
    return None if block.cache_control is None else CacheHint(block.cache_control.ttl)


def _convert(where: str, value: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as err:
        raise MalformedBody(f"'{where}': {err}", param=where) from err
