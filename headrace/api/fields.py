"""What the types of request bodies cannot say of their fields: ranges, and what becomes of those that are not served.

Owns nothing: ranges come from the tables and limits that requests are checked with, so the document says what the
checks do. A model of a remote upstream may allow less, and says so itself.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.api.alternatives import MAX_CHOICES, MAX_LENGTH_PENALTY
from headrace.api.anthropic_types import CountTokensBody, MessagesBody
from headrace.api.completions import MAX_PROMPTS
from headrace.api.openai_types import (
    ANY,
    NEUTRAL,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    Message,
    PrefixBody,
    StreamOptions,
    TokenizeBody,
)
from headrace.api.params import MAX_DEADLINE_MS, MAX_LOGPROBS, MAX_STOP_STRINGS
from headrace.api.prefixes import LONGEST_TTL_S
from headrace.core.request import PRIORITIES
from headrace.sampling import RANGES

Json = dict[str, Any]

_SAMPLING: dict[str, Json] = {
    name: {"exclusiveMinimum" if is_open else "minimum": low, "maximum": high}
    for name, (low, high, is_open) in RANGES.items()
}
_GENERATION: dict[str, Json] = {
    **_SAMPLING,
    "top_k": {"minimum": -1, "description": "0 or -1 keep all tokens"},
    "max_tokens": {"minimum": 0, "description": "1 or more; 0 with `echo` only scores the prompt"},
    "max_completion_tokens": {"minimum": 1, "description": "the same as `max_tokens`, before which it goes"},
    "min_tokens": {"minimum": 0},
    "n": {"minimum": 1, "maximum": MAX_CHOICES},
    "best_of": {"minimum": 1, "maximum": MAX_CHOICES, "description": "at least `n`"},
    "length_penalty": {"minimum": -MAX_LENGTH_PENALTY, "maximum": MAX_LENGTH_PENALTY},
    "prompt_logprobs": {"minimum": 0, "maximum": MAX_LOGPROBS},
    "top_logprobs": {"minimum": 0, "maximum": MAX_LOGPROBS, "description": "needs `logprobs`"},
    "priority": {"minimum": PRIORITIES[0], "maximum": PRIORITIES[-1], "description": "lower is served first"},
    "deadline_ms": {"minimum": 1, "maximum": MAX_DEADLINE_MS, "description": "for the first token, from the arrival"},
    "attention_window": {"minimum": 1},
    "attention_sinks": {"minimum": 0},
    "stop": {"maxItems": MAX_STOP_STRINGS},
}
_EXTRA: dict[type[msgspec.Struct], dict[str, Json]] = {
    ChatBody: {**_GENERATION, "max_tokens": {"minimum": 1}},
    CompletionBody: {
        **_GENERATION,
        "logprobs": {"minimum": 0, "maximum": MAX_LOGPROBS},
        "prompt": {
            "minItems": 1,
            "maxItems": MAX_PROMPTS,
            "description": "texts or lists of token ids; or one of them",
        },
    },
    MessagesBody: {
        **{name: _GENERATION[name] for name in ("temperature", "top_p", "top_k")},
        "max_tokens": {"minimum": 1},
    },
    PrefixBody: {"ttl_s": {"exclusiveMinimum": 0, "maximum": LONGEST_TTL_S}},
}
_OPENAI: tuple[type[msgspec.Struct], ...] = (ChatBody, CompletionBody, Message, StreamOptions)
_BODIES = (ChatBody, CompletionBody, MessagesBody, CountTokensBody, TokenizeBody, DetokenizeBody, PrefixBody)
_TOKEN_LISTS = ("prompt", "tokens", "stop_token_ids")
_WIDEST = {"minimum": -(1 << 63), "maximum": (1 << 63) - 1}  # a JSON number beyond them is refused


def complete(schemas: dict[str, Json]) -> None:
    """Add to the schemas of request bodies what their types do not say."""
    for kind in _OPENAI:
        for field in msgspec.structs.fields(kind):
            if field.type is object:
                schemas[kind.__name__]["properties"][field.name]["description"] = fate_of(field.name)
    for field in msgspec.structs.fields(MessagesBody):
        if field.type is object:
            told = {"description": "passed on to upstreams of this wire, refused elsewhere"}
            schemas["MessagesBody"]["properties"][field.name] |= told
            schemas["CountTokensBody"]["properties"].get(field.name, {}).update(told)
    for kind, extra in _EXTRA.items():
        properties = schemas[kind.__name__]["properties"]
        for name in extra.keys() & properties.keys():
            properties[name].update(extra[name])
    for kind in _BODIES:
        _bound(schemas[kind.__name__]["properties"])
    _require_kinds(schemas)


def _bound(properties: dict[str, Json]) -> None:
    """Say how large numbers may be, what token ids look like, and that a conversation has a message."""
    for name, schema in properties.items():
        ways: list[Json] = schema.get("anyOf", [schema])
        if any(way.get("type") == "integer" for way in ways):
            schema.update({**_WIDEST, **schema})
        for way in ways:
            if way.get("type") == "array" and name in _TOKEN_LISTS:
                _of_tokens(way["items"])
            if name == "logit_bias" and way.get("type") == "object":
                way["propertyNames"] = {"pattern": "^[0-9]{1,9}$"}
                way["additionalProperties"] |= {"minimum": -100, "maximum": 100}
        if name == "messages":
            schema["minItems"] = 1


def _of_tokens(items: Json) -> None:
    """Say of a list's items that the numbers among them are token ids."""
    for way in items.get("anyOf", [items]):
        if way.get("type") == "integer":
            way.update({"minimum": 0, "maximum": (1 << 31) - 1})
        elif way.get("type") == "array":
            _of_tokens(way["items"])


def _require_kinds(schemas: dict[str, Json]) -> None:
    """Say that Anthropic's blocks, which stay JSON objects here, name their kind."""
    block = {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}}
    places = [schemas["AnthropicMessage"]["properties"]["content"]]
    places += [schemas[name]["properties"]["system"] for name in ("MessagesBody", "CountTokensBody")]
    for place in places:
        for way in place["anyOf"]:
            if way.get("type") == "array":
                way["items"] = block


def fate_of(name: str) -> str:
    """Say what becomes of a field that models of this server do not serve."""
    neutral = NEUTRAL.get(name, ())
    if ANY in neutral:
        return "a label of the caller's own; not read"
    values = " or ".join(f"`{msgspec.json.encode(value).decode()}`" for value in neutral)
    but = f" but for {values}" if values else ""
    return f"refused{but} by models of this server; remote upstreams that know the field get it"
