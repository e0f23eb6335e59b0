"""Request bodies of the OpenAI wire, with the extra sampling fields that vLLM's clients send.

Owns: field names and JSON types. Ranges and meaning are judged in `params`, `chat` and `completions`.
Invariant: a field that is not declared here is refused by name. `None` means "not given" everywhere, because
clients send explicit nulls. Fields of type `object` are known to the wire but not served: `NEUTRAL` lists the
values that ask for nothing and are therefore accepted.
Source: OpenAI API reference (chat, completions); vLLM OpenAI-compatible server, "extra parameters".
"""

from __future__ import annotations

from typing import Literal

import msgspec

ANY = object()  # in NEUTRAL: a label for the caller's own book-keeping, never read


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a stream carries beside text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    # known, not served
    include_obfuscation: object = None


class GenerationBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What chat and text completions share."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None
    service_tier: Literal["auto", "default", "flex"] | None = None
    deadline_ms: int | None = None
    attention_window: int | None = None
    attention_sinks: int | None = None
    # labels
    user: object = None
    metadata: object = None
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    # known, not served
    response_format: object = None
    spaces_between_special_tokens: object = None
    truncate_prompt_tokens: object = None
    bad_words: object = None
    allowed_token_ids: object = None
    logits_processors: object = None
    guided_json: object = None
    guided_regex: object = None
    guided_choice: object = None
    guided_grammar: object = None
    structured_outputs: object = None
    return_token_ids: object = None
    return_tokens_as_token_ids: object = None


class ContentPart(msgspec.Struct, kw_only=True):
    """A part of a message's content. Models here take text only; the rest is for remote upstreams."""

    type: str
    text: str | None = None
    image_url: object = None
    cache_control: object = None
    input_audio: object = None
    file: object = None
    video_url: object = None
    audio_url: object = None
    refusal: object = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    # known, not served
    refusal: object = None
    annotations: object = None
    reasoning_content: object = None
    tool_calls: object = None
    tool_call_id: object = None
    function_call: object = None
    audio: object = None


class ChatBody(GenerationBody, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    return_token_ids: bool | None = None
    # labels
    prompt_cache_key: object = None
    safety_identifier: object = None
    # known, not served
    tools: object = None
    tool_choice: object = None
    parallel_tool_calls: object = None
    functions: object = None
    function_call: object = None
    modalities: object = None
    audio: object = None
    prediction: object = None
    reasoning_effort: object = None
    verbosity: object = None
    web_search_options: object = None
    store: object = None
    chat_template: object = None
    documents: object = None
    echo: object = None


class CompletionBody(GenerationBody, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions. `prompt`: text, texts, token ids, or lists of token ids."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None
    # known, not served
    suffix: object = None


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize: a text, or messages to put through the chat template first."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    return_token_strs: bool | None = None


class PrefixBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/prefixes: a text, token ids, or messages, to be computed and kept for `ttl_s` seconds."""

    model: str | None = None
    prompt: str | list[int] | None = None
    messages: list[Message] | None = None
    ttl_s: float | None = None
    chat_template_kwargs: dict[str, object] | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


# Values that change nothing here; every other value of the field is refused by name.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "user": (ANY,),
    "metadata": (ANY,),
    "prompt_cache_key": (ANY,),
    "safety_identifier": (ANY,),
    "response_format": ({"type": "text"},),
    "spaces_between_special_tokens": (True,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "logits_processors": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
    "documents": ([],),
    "echo": (False,),
    "suffix": ("",),
    "tool_calls": ([],),
    "annotations": ([],),
    "refusal": ("",),
    "reasoning_content": ("",),
    "include_obfuscation": (False,),
}
