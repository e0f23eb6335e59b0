"""Requests for models behind remote upstreams: words and given values, no token of which is known here.

Owns nothing. Invariant: sampling and stop rules hold what the wires need to spell an answer; what is sent to the
upstream is `given`, so that its own defaults apply to what the caller left out.
"""

from __future__ import annotations

import msgspec

from headrace.api.alternatives import MAX_CHOICES
from headrace.api.openai_conversations import conversation_of, given_of
from headrace.api.openai_types import ChatBody, CompletionBody, GenerationBody
from headrace.api.params import MAX_DEADLINE_MS, optional_bounded
from headrace.api.served import RemoteModel
from headrace.core.conversation import Conversation, Given
from headrace.core.errors import InvalidRequest
from headrace.core.request import Request, RequestId, SamplingParams, StopRules

MOST_TOKENS = 1 << 24  # of an answer: more than any model writes, and what it costs is a number that accounts can hold
UNBOUNDED_TOKENS = 1 << 20  # where neither the caller nor the configuration bounds the answer


def chat_request(body: ChatBody, model: RemoteModel, request_id: str, arrival_s: float) -> Request:
    """Make the core request of a chat. Raises InvalidRequest and its leaves."""
    request = remote_request(model, conversation_of(body), given_of(body), request_id, arrival_s)
    return _with_deadline(request, body)


def text_request(
    body: CompletionBody, prompt: str | list[int], model: RemoteModel, request_id: str, arrival_s: float
) -> Request:
    """Make the core request of one prompt of a completion. Raises InvalidRequest and its leaves."""
    return _with_deadline(remote_request(model, prompt, given_of(body), request_id, arrival_s), body)


def _with_deadline(request: Request, body: GenerationBody) -> Request:
    deadline_ms = optional_bounded("deadline_ms", body.deadline_ms, 1, MAX_DEADLINE_MS)
    return request if deadline_ms is None else msgspec.structs.replace(request, deadline_s=deadline_ms / 1e3)


def remote_request(
    model: RemoteModel, source: Conversation | str | list[int], given: Given, request_id: str, arrival_s: float
) -> Request:
    """Put a core request together. Raises InvalidRequest for a number out of its range."""
    if given.max_tokens is not None and not 0 <= given.max_tokens <= MOST_TOKENS:
        raise InvalidRequest(
            f"max_tokens is {given.max_tokens}; it must be at least 1 and at most {MOST_TOKENS:,}", param="max_tokens"
        )
    bound = model.max_context or UNBOUNDED_TOKENS
    tokens = tuple(source) if isinstance(source, list) else ()
    return Request(
        request_id=RequestId(request_id),
        model=model.name,
        prompt=tokens,
        sampling=SamplingParams(logprobs=given.logprobs, seed=given.seed or 0),
        stop=StopRules(
            max_tokens=bound if given.max_tokens is None else given.max_tokens, stop_strings=given.stop or ()
        ),
        n=optional_bounded("n", given.n, 1, MAX_CHOICES) or 1,
        arrival_s=arrival_s,
        source=None if isinstance(source, list) else source,
        given=given,
    )
