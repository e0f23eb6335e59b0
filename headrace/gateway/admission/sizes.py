"""How many tokens a request may come to, before anything has counted them.

Pure functions. A request for a model of this process has its tokens, so the numbers are exact. One that goes to a
remote upstream has words: its input is estimated on the high side, and corrected by what the upstream tells at the end.
"""

from __future__ import annotations

import msgspec

from headrace.core.conversation import (
    Conversation,
    ForeignPart,
    ImagePart,
    Part,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from headrace.core.delta import Delta
from headrace.core.request import Request

_BYTES_PER_TOKEN = 2  # few texts have less
_TOKENS_PER_MESSAGE = 8
_TOKENS_PER_IMAGE = 2048
_BYTES_PER_OUTPUT_TOKEN = 4


def most_input(request: Request) -> int:
    """Return the prompt's tokens, or the most that its words are likely to come to."""
    if request.prompt or request.source is None:
        return len(request.prompt)
    if isinstance(request.source, str):
        return _text(request.source)
    return _conversation(request.source)


def likely_input(most: int) -> int:
    """Return what is likely of what `most_input` says of a remote request: its words at four bytes a token."""
    return -(-most // 2)


def num_sequences(request: Request) -> int:
    """Return how many answers are written, those included that are thrown away."""
    if request.best_of is None and request.beam is None:
        return request.n
    width = 1 if request.beam is None else request.beam.width
    return max(request.n, request.best_of or 1, width)


def limited(request: Request, max_tokens: int) -> Request:
    """Return the request with at most `max_tokens` of output an answer, for engines and upstreams alike."""
    given = request.given
    if given is not None:
        given = msgspec.structs.replace(
            given,
            max_tokens=max_tokens,
            min_tokens=None if given.min_tokens is None else min(given.min_tokens, max_tokens),
        )
    sampling = request.sampling
    if sampling.min_tokens > max_tokens:
        sampling = msgspec.structs.replace(sampling, min_tokens=max_tokens)
    stop = msgspec.structs.replace(request.stop, max_tokens=max_tokens)
    return msgspec.structs.replace(request, sampling=sampling, stop=stop, given=given)


def output_of(delta: Delta) -> int:
    """Return the tokens of a delta, estimated from its words where nothing has counted them."""
    if delta.token_ids:
        return len(delta.token_ids)
    num_chars = len(delta.text) + len(delta.reasoning) + len(delta.refusal)
    for call in delta.tool_calls:
        num_chars += len(call.arguments) + len(call.name)
    return -(-num_chars // _BYTES_PER_OUTPUT_TOKEN)


def _conversation(words: Conversation) -> int:
    num = sum(_TOKENS_PER_MESSAGE + sum(map(_part, message.parts)) for message in words.messages)
    if words.tools:
        num += len(msgspec.json.encode(words.tools)) // _BYTES_PER_TOKEN
    if words.response_format is not None:
        num += len(words.response_format) // _BYTES_PER_TOKEN
    return num


def _part(part: Part) -> int:
    match part:
        case TextPart():
            return _text(part.text)
        case ImagePart():
            return _TOKENS_PER_IMAGE
        case ToolCallPart():
            return _text(part.name) + _text(part.arguments)
        case ToolResultPart():
            return _TOKENS_PER_MESSAGE + sum(map(_part, part.parts))
        case ForeignPart():
            return len(part.payload) // _BYTES_PER_TOKEN
        case _:
            return _text(part.text)


def _text(text: str) -> int:
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)
