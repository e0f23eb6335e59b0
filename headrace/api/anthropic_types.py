"""Request bodies of the Anthropic wire.

Owns: field names and JSON types; meaning is judged in `anthropic_conversations` and `messages`. Content blocks stay
JSON objects here, because the wire keeps adding kinds that only an Anthropic upstream has to understand.
Invariant: a field that is not declared here is refused by name. `None` means "not given". Fields of type `object` are
passed on to upstreams of this wire and refused everywhere else.
Source: Anthropic API reference, Messages and Count message tokens.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Block = dict[str, object]


class AnthropicMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class Thinking(msgspec.Struct, kw_only=True):
    """How much to think first."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: object = None


class Metadata(msgspec.Struct, kw_only=True):
    """The caller's own book-keeping."""

    user_id: str | None = None


class ToolChoiceBody(msgspec.Struct, kw_only=True):
    """Whether a tool must be called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountTokensBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages/count_tokens."""

    messages: list[AnthropicMessage]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[Block] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: Thinking | None = None
    # for upstreams of this wire
    cache_control: object = None
    context_management: object = None
    mcp_servers: object = None
    output_config: object = None
    output_format: object = None


class MessagesBody(CountTokensBody, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    # for upstreams of this wire
    service_tier: object = None
    container: object = None
    inference_geo: object = None
    speed: object = None
