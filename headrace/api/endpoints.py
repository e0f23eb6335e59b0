"""Every endpoint of the public API in words and types: what it takes, what it gives, with which status it refuses.

Owns what `openapi` makes the document from. Nothing here decides how a request is served: bodies and replies are the
very types that the endpoints read and write, and `tests/arch/test_openapi.py` compares the list with the routes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from headrace.api import anthropic_replies as anthropic
from headrace.api import openai_replies as openai
from headrace.api.anthropic_types import CountTokensBody, MessagesBody
from headrace.api.health import Upstreams, Version
from headrace.api.openai_types import ChatBody, CompletionBody, DetokenizeBody, PrefixBody, TokenizeBody
from headrace.api.requests import AccountReply, CancelReply
from headrace.api.swap import SwapBody
from headrace.core.health import ServerHealth
from headrace.core.swap import SwapReply
from headrace.core.why import Explanation

Tag = Literal["answers", "requests", "models", "tokens", "operations"]

TAGS: dict[Tag, str] = {
    "answers": "What computes something: limits, budgets and the ledger see these",
    "requests": "A request by its id: how it stands, why, its end, the rest of its stream",
    "models": "What is served",
    "tokens": "Text to token ids and back, without a model's work",
    "operations": "For monitors and operators",
}

# What every call may meet before it is looked at: a header that cannot be, the key, a database that is away, a defect.
_DOOR = (400, 401, 403, 500, 503)
_READ = (*_DOOR, 404, 413)
_COMPUTE = (*_READ, 402, 409, 415, 422, 429, 502, 504)
_ASKING = ("x-request-id", "x-correlation-id", "X-Task-Id")
_GENERATING = (*_ASKING, "Idempotency-Key", "X-Resume-Grace", "Last-Event-ID", "x-headrace-degrade")

_MESSAGE_EVENTS = (
    anthropic.MessageStart, anthropic.BlockStart, anthropic.BlockDelta, anthropic.BlockStop, anthropic.MessageDelta,
    anthropic.MessageStop, anthropic.AnthropicError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One method of one path.

    name       the operation's id: OpenAI's own where it has one, so that generated clients look alike
    body       what is sent, as JSON; None: nothing
    reply      what comes back, as JSON; None: what `text` says
    events     kinds of events of a stream; none: it does not stream
    text       media types of replies that are no JSON
    headers    of the request, those of `openapi.REQUEST_HEADERS`
    refusals   statuses of errors
    unhealthy  503 has the reply's own shape
    is_open    it wants no key
    is_empty   204 says that nothing is left
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    name: str
    summary: str
    tag: Tag
    body: Any = None
    reply: Any = None
    events: tuple[Any, ...] = ()
    text: tuple[str, ...] = ()
    headers: tuple[str, ...] = ("x-request-id", "x-correlation-id")
    refusals: tuple[int, ...] = _DOOR
    unhealthy: bool = False
    is_open: bool = False
    is_empty: bool = False


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="POST", path="/v1/chat/completions", name="createChatCompletion", tag="answers",
        summary="Answer a conversation, whole or streamed, in OpenAI's wire",
        body=ChatBody, reply=openai.ChatReply, events=(openai.ChatChunk, openai.ErrorReply),
        headers=_GENERATING, refusals=_COMPUTE,
    ),
    Endpoint(
        method="POST", path="/v1/completions", name="createCompletion", tag="answers",
        summary="Continue texts or token ids, whole or streamed; with echo their scores",
        body=CompletionBody, reply=openai.TextReply, events=(openai.TextReply, openai.ErrorReply),
        headers=_GENERATING, refusals=_COMPUTE,
    ),
    Endpoint(
        method="POST", path="/v1/messages", name="createMessage", tag="answers",
        summary="Answer a conversation, whole or streamed, in Anthropic's wire",
        body=MessagesBody, reply=anthropic.MessageReply, events=_MESSAGE_EVENTS,
        headers=(*_GENERATING, "anthropic-beta"), refusals=_COMPUTE,
    ),
    Endpoint(
        method="POST", path="/v1/messages/count_tokens", name="countMessageTokens", tag="tokens",
        summary="Count the tokens of such a prompt without answering it",
        body=CountTokensBody, reply=anthropic.TokenCount, headers=_ASKING,
        refusals=(*_READ, 409, 415, 422, 429, 502, 504),
    ),
    Endpoint(
        method="POST", path="/v1/prefixes", name="createPrefix", tag="answers",
        summary="Compute a prompt and keep it for a while",
        body=PrefixBody, reply=openai.PrefixReply, headers=_ASKING, refusals=_COMPUTE,
    ),
    Endpoint(
        method="GET", path="/v1/models", name="listModels", tag="models",
        summary="List the models that the caller may ask, the default first", reply=openai.ModelList,
    ),
    Endpoint(
        method="GET", path="/v1/models/{model_id}", name="retrieveModel", tag="models",
        summary="Show one model", reply=openai.ModelCard, refusals=(*_DOOR, 404),
    ),
    Endpoint(
        method="GET", path="/v1/requests/{request_id}", name="retrieveRequest", tag="requests",
        summary="Say how a request stands, its usage and its cost", reply=AccountReply, refusals=(*_DOOR, 404),
    ),
    Endpoint(
        method="DELETE", path="/v1/requests/{request_id}", name="deleteRequest", tag="requests",
        summary="End a request; may be repeated", reply=CancelReply, refusals=(*_DOOR, 404),
    ),
    Endpoint(
        method="POST", path="/v1/requests/{request_id}/cancel", name="cancelRequest", tag="requests",
        summary="End a request, for clients that cannot send DELETE", reply=CancelReply, refusals=(*_DOOR, 404),
    ),
    Endpoint(
        method="GET", path="/v1/requests/{request_id}/why", name="explainRequest", tag="requests",
        summary="Say why a request waits, was preempted or refused", reply=Explanation, refusals=(*_DOOR, 404),
    ),
    Endpoint(
        method="GET", path="/v1/requests/{request_id}/events", name="resumeRequest", tag="requests",
        summary="Go on reading a stream whose connection was lost; 204 once the client has it all",
        events=(openai.ChatChunk, openai.TextReply, openai.ErrorReply, *_MESSAGE_EVENTS),
        headers=("x-request-id", "x-correlation-id", "Last-Event-ID"),
        refusals=(*_DOOR, 404, 409, 410, 429, 502, 504), is_empty=True,
    ),
    Endpoint(
        method="POST", path="/tokenize", name="tokenize", tag="tokens",
        summary="Turn a text, or messages through the chat template, into token ids",
        body=TokenizeBody, reply=openai.TokenizeReply, refusals=_READ,
    ),
    Endpoint(
        method="POST", path="/detokenize", name="detokenize", tag="tokens",
        summary="Turn token ids into text", body=DetokenizeBody, reply=openai.DetokenizeReply, refusals=_READ,
    ),
    Endpoint(
        method="GET", path="/health", name="health", tag="operations", is_open=True, unhealthy=True,
        summary="Say whether new requests are taken", reply=ServerHealth, refusals=(400, 500),
    ),
    Endpoint(
        method="GET", path="/health/ready", name="ready", tag="operations", is_open=True, unhealthy=True,
        summary="The same: what a load balancer asks", reply=ServerHealth, refusals=(400, 500),
    ),
    Endpoint(
        method="GET", path="/health/live", name="live", tag="operations", is_open=True, unhealthy=True,
        summary="Say whether the process can serve or come back", reply=ServerHealth, refusals=(400, 500),
    ),
    Endpoint(
        method="GET", path="/health/progress", name="progress", tag="operations",
        summary="Steps, tokens, ages and stuck requests of every model", reply=ServerHealth,
    ),
    Endpoint(
        method="GET", path="/health/upstreams", name="upstreams", tag="operations",
        summary="Breaker, load, keys and outcomes of every remote upstream", reply=Upstreams,
    ),
    Endpoint(
        method="GET", path="/metrics", name="metrics", tag="operations",
        summary="Figures for Prometheus", text=("text/plain", "application/openmetrics-text"),
    ),
    Endpoint(
        method="GET", path="/version", name="version", tag="operations",
        summary="This server's version", reply=Version,
    ),
    Endpoint(
        method="POST", path="/admin/models/{name}/swap", name="swapModel", tag="operations",
        summary="Load other weights for a served name; an administrator's key",
        body=SwapBody, reply=SwapReply, refusals=(*_READ, 409),
    ),
    Endpoint(
        method="GET", path="/openapi.json", name="openapi", tag="operations",
        summary="This document", reply=dict[str, Any],
    ),
    Endpoint(
        method="GET", path="/", name="welcome", tag="operations",
        summary="What is served and how it is asked, for a person or in plain text", text=("text/html", "text/plain"),
    ),
)  # fmt: skip
