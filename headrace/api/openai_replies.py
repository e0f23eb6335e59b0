"""Reply bodies of the OpenAI wire: whole answers, stream chunks, model cards, token counts.

Owns: field names and order. Values are copied out of `Delta` and `Usage` by `chat` and `completions`.
Invariant: a chunk always has `object`, and the usage chunk has `"choices": []`; load generators rely on both.
UNSET fields are left out of the JSON; None fields are written as null; a struct's tag is its `object` field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from headrace.core.delta import FinishReason, Usage


class PromptTokensDetails(msgspec.Struct, frozen=True, gc=False):
    """Where the prompt's tokens came from. What a provider charges for keeping is told where there is any."""

    cached_tokens: int
    cache_write_tokens: int | UnsetType = UNSET
    cache_write_1h_tokens: int | UnsetType = UNSET


class CompletionTokensDetails(msgspec.Struct, frozen=True, gc=False):
    """What the answer's tokens were."""

    reasoning_tokens: int


class UsageReply(msgspec.Struct, frozen=True):
    """Tokens of one request. `is_estimate` is true where an upstream did not count; `cost` is in dollars."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET
    is_estimate: bool | UnsetType = UNSET
    cost: float | UnsetType = UNSET


def sum_usages(usages: Sequence[Usage]) -> Usage:
    """Return the usage of several requests of one call; without a cost unless that of each is known."""
    if len(usages) == 1:
        return usages[0]
    costs = [usage.cost_nano for usage in usages if usage.cost_nano is not None]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        cache_write_tokens=sum(usage.cache_write_tokens for usage in usages),
        cache_write_1h_tokens=sum(usage.cache_write_1h_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        is_estimate=any(usage.is_estimate for usage in usages),
        cost_nano=sum(costs) if len(costs) == len(usages) and costs else None,
    )


def usage_reply(usage: Usage) -> UsageReply:
    """Spell `usage` as the wire does."""
    return UsageReply(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptTokensDetails(
            usage.cached_tokens, usage.cache_write_tokens or UNSET, usage.cache_write_1h_tokens or UNSET
        ),
        CompletionTokensDetails(usage.reasoning_tokens) if usage.reasoning_tokens else UNSET,
        usage.is_estimate or UNSET,
        UNSET if usage.cost_nano is None else usage.cost_nano / 1e9,
    )


def finish_reply(finish: FinishReason) -> str:
    """Spell why a choice ended; this wire has no word for a pause."""
    return "stop" if finish is FinishReason.PAUSE else finish.value


class TopLogprob(msgspec.Struct, frozen=True):
    """One alternative at a position (chat)."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct, frozen=True):
    """The sampled token of a position and its best alternatives (chat)."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Logprobs of a chat choice."""

    content: list[ChatLogprob]


class FunctionReply(msgspec.Struct):
    """The function of a call. In a stream `name` comes first and `arguments` in pieces."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallReply(msgspec.Struct):
    """A call of a tool, whole or a piece of it; `index` is there in streams."""

    function: FunctionReply
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class DeltaMessage(msgspec.Struct):
    """New text of a chat choice; `role` comes with the first of it."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    tool_calls: list[ToolCallReply] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    """One choice's part of a chat chunk."""

    index: int
    delta: DeltaMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class PromptToken(msgspec.Struct):
    """One scored prompt token, in vLLM's shape. `rank` counts from 1; None beyond the alternatives asked for."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]


class ChatChunk(msgspec.Struct, tag_field="object", tag="chat.completion.chunk"):
    """One event of a chat stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageReply | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant"):
    """A whole answer. `content` is None where there are tool calls or a refusal and no text."""

    content: str | None
    reasoning_content: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    tool_calls: list[ToolCallReply] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One whole choice of a chat answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatReply(msgspec.Struct, tag_field="object", tag="chat.completion"):
    """A whole chat answer."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET


class TextLogprobs(msgspec.Struct):
    """Logprobs of a text choice: parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    """One choice of a text completion, whole or a part of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class TextReply(msgspec.Struct, tag_field="object", tag="text_completion"):
    """A text completion, or one event of its stream."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageReply | UnsetType | None = UNSET
    system_fingerprint: str | UnsetType = UNSET


class ModelCard(msgspec.Struct, tag_field="object", tag="model"):
    """One served model."""

    id: str
    created: int
    root: str
    max_model_len: int | None
    parent: str | None = None
    owned_by: Literal["headrace"] = "headrace"


class ModelList(msgspec.Struct, tag_field="object", tag="list"):
    """All served models, the default first."""

    data: list[ModelCard]


class TokenizeReply(msgspec.Struct):
    """Token ids of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class PrefixReply(msgspec.Struct):
    """A kept prefix. `ttl_s` None: for as long as the server runs."""

    model: str
    prompt_tokens: int
    cached_tokens: int  # that were there before
    ttl_s: float | None
    object: str = "prefix"
    cost: float | UnsetType = UNSET  # in dollars


class DetokenizeReply(msgspec.Struct):
    """Text of token ids."""

    prompt: str


class ErrorBody(msgspec.Struct):
    """What went wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(msgspec.Struct):
    """The envelope around an error, alone or as an event of a stream."""

    error: ErrorBody
