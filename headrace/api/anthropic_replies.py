"""Reply bodies of the Anthropic wire: whole messages, stream events, token counts, errors.

Owns: field names and order. Values are copied out of `Delta` and `Usage` by `messages`.
Invariant: `usage.input_tokens` counts neither what was read from a cache nor what was written to one.
Source: Anthropic API reference, Messages and Streaming messages.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from headrace.core.delta import FinishReason, Usage


class CacheCreation(msgspec.Struct):
    """How long what was written is kept."""

    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


class MessageUsage(msgspec.Struct):
    """Tokens of one request, in disjoint buckets. `is_estimate` is there where an upstream did not count; `cost` is in
    dollars, at the end and where the price is known."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation: CacheCreation | UnsetType = UNSET
    is_estimate: bool | UnsetType = UNSET
    cost: float | UnsetType = UNSET


def message_usage(usage: Usage) -> MessageUsage:
    """Spell `usage` as this wire does."""
    kept, kept_1h = usage.cache_write_tokens, usage.cache_write_1h_tokens
    return MessageUsage(
        input_tokens=max(0, usage.prompt_tokens - usage.cached_tokens - kept),
        output_tokens=usage.completion_tokens,
        cache_creation_input_tokens=kept,
        cache_read_input_tokens=usage.cached_tokens,
        cache_creation=CacheCreation(kept - kept_1h, kept_1h) if kept else UNSET,
        is_estimate=usage.is_estimate or UNSET,
        cost=UNSET if usage.cost_nano is None else usage.cost_nano / 1e9,
    )


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    """Text; `citations` only where an upstream gave some."""

    text: str
    citations: list[msgspec.Raw] | UnsetType = UNSET


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model thought, with its maker's signature."""

    thinking: str
    signature: str


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call of a tool. `input` is a JSON object."""

    id: str
    name: str
    input: msgspec.Raw


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock | msgspec.Raw


class MessageReply(msgspec.Struct, tag_field="type", tag="message"):
    """A whole answer, or its empty beginning in a stream."""

    id: str
    model: str
    content: list[ContentBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage
    role: str = "assistant"


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    """The first event."""

    message: MessageReply


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    """A block begins, empty."""

    index: int
    content_block: ContentBlock


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    """More text."""

    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    """More thoughts."""

    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    """The thoughts' signature."""

    signature: str


class InputJsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    """More of a call's input, as JSON text."""

    partial_json: str


BlockChange = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta | msgspec.Raw


class BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    """A block grows."""

    index: int
    delta: BlockChange


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    """A block is whole."""

    index: int


class StopDelta(msgspec.Struct):
    """Why the message ended."""

    stop_reason: str | None
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    """The end of the message, with the usage of the whole."""

    delta: StopDelta
    usage: MessageUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """The last event."""


class TokenCount(msgspec.Struct):
    """Tokens that a prompt would have."""

    input_tokens: int


class AnthropicErrorBody(msgspec.Struct):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(msgspec.Struct, tag_field="type", tag="error"):
    """The envelope around an error, alone or as an event of a stream."""

    error: AnthropicErrorBody
    request_id: str


def stop_reason(finish: FinishReason, matched: str | None) -> str:
    """Spell why an answer ended; `matched` is the caller's own stop sequence."""
    match finish:
        case FinishReason.STOP:
            return "end_turn" if matched is None else "stop_sequence"
        case FinishReason.LENGTH:
            return "max_tokens"
        case FinishReason.TOOL_CALLS:
            return "tool_use"
        case FinishReason.CONTENT_FILTER:
            return "refusal"
        case FinishReason.PAUSE:
            return "pause_turn"
        case FinishReason.ABORT | FinishReason.EXPIRED | FinishReason.ERROR:
            return "end_turn"


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(status: int) -> str:
    """Return this wire's name for errors of a status."""
    return _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
