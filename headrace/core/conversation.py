"""What a caller said, in no wire's shape: messages of typed parts, tools, and the values that were given.

Values only. Made by `api/` from the OpenAI and the Anthropic wire; local engines render it through a chat template,
`gateway/upstream` encodes it for remote servers.
Invariant: nothing that a caller sent is lost on the way. What only one wire knows travels as it came (`ForeignPart`,
`ForeignTool`, `extras`) and reaches upstreams of that wire; any other upstream refuses it by name.
"""

from __future__ import annotations

from typing import Literal, NewType

import msgspec

Json = NewType("Json", bytes)  # one encoded JSON value: hashable, and copied into the next body as it is
Wire = Literal["openai", "anthropic"]
Role = Literal["system", "user", "assistant", "tool"]


class CacheHint(msgspec.Struct, frozen=True):
    """The prompt up to here is worth keeping. Anthropic's `cache_control`; `ttl` is "5m" or "1h"."""

    ttl: str | None = None


class TextPart(msgspec.Struct, frozen=True):
    """Plain text."""

    text: str
    cache: CacheHint | None = None


class ImagePart(msgspec.Struct, frozen=True):
    """A picture: an `https:` URL, or a `data:` URL that holds it."""

    url: str
    detail: str | None = None  # how closely to look (OpenAI)
    cache: CacheHint | None = None


class ReasoningPart(msgspec.Struct, frozen=True):
    """What the model thought before; `signature` proves to its maker that the text is unchanged."""

    text: str
    signature: str | None = None


class ToolCallPart(msgspec.Struct, frozen=True):
    """The assistant's call of a tool. `arguments` is JSON text, as the model wrote it."""

    call_id: str
    name: str
    arguments: str
    cache: CacheHint | None = None


class ForeignPart(msgspec.Struct, frozen=True):
    """A part that only `wire` knows. `kind` names it in refusals."""

    wire: Wire
    kind: str
    payload: Json


class ToolResultPart(msgspec.Struct, frozen=True):
    """What a called tool gave back."""

    call_id: str
    parts: tuple[TextPart | ImagePart | ForeignPart, ...]
    is_error: bool = False
    cache: CacheHint | None = None


Part = TextPart | ImagePart | ReasoningPart | ToolCallPart | ToolResultPart | ForeignPart


class Message(msgspec.Struct, frozen=True):
    """One turn."""

    role: Role
    parts: tuple[Part, ...]
    name: str | None = None

    @property
    def text(self) -> str:
        """Return the text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call. `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: Json | None = None
    is_strict: bool | None = None
    cache: CacheHint | None = None


class ForeignTool(msgspec.Struct, frozen=True):
    """A tool that only `wire` knows, such as a search run by the provider."""

    wire: Wire
    kind: str
    payload: Json


class ToolChoice(msgspec.Struct, frozen=True):
    """Whether the model must call, and what. `name` belongs to "named"."""

    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """How much to think first: a level, a budget in tokens, or not at all. None: the caller did not say."""

    is_enabled: bool | None = None
    effort: str | None = None
    budget_tokens: int | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A chat request's words."""

    messages: tuple[Message, ...]
    tools: tuple[Tool | ForeignTool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Json | None = None  # in OpenAI's shape
    reasoning: Reasoning | None = None
    continues_last: bool = False  # the answer goes on inside the last message, the assistant's


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """The values that the caller gave. None: not given, so the upstream's own default applies.

    extras  fields of the caller's wire that nothing here interprets, by name
    headers further headers of the caller's wire, for upstreams of that wire
    labels  the caller's own book-keeping: passed on where the upstream keeps it, too
    """

    wire: Wire = "openai"
    wants_stream: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[str, float], ...] | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    include_stop_text: bool | None = None
    skip_special_tokens: bool | None = None
    n: int | None = None
    logprobs: int | None = None  # alternatives per output token
    extras: tuple[tuple[str, Json], ...] = ()
    labels: tuple[tuple[str, Json], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
