"""Replies of an OpenAI-like server as deltas: chunks of a stream, or one whole answer.

Owns what one stream has to remember: which choices have ended, and the last ending until the usage has come.
Invariant: the deltas keep the promise of `core.delta`, however many `[DONE]` or endings a server sends. What makes no
sense raises Failure; nothing of an unfinished choice is taken for an answer.
Source: OpenAI API reference; `reasoning_content` and `reasoning` as vLLM, SGLang, DeepSeek and Ollama spell it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.core.delta import Delta, FinishReason, PositionLogprobs, TokenLogprob, ToolCallDelta, Usage
from headrace.gateway.upstream.counts import sensible
from headrace.gateway.upstream.failure import of_event, transient
from headrace.gateway.upstream.reported import ToldCost, decoded


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, object] | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Text(msgspec.Struct):
    text: str | None = None


class _Words(msgspec.Struct):
    """A delta of a stream, or the message of a whole answer."""

    content: str | list[_Text] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Scored(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
    """Logprobs of both wires: `content` in chats, parallel lists in completions."""

    content: list[_Scored] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Words | None = None
    message: _Words | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(ToldCost):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek


class _Error(msgspec.Struct):
    type: str | None = None
    code: str | int | None = None


class _Chunk(msgspec.Struct):
    """One event, or a whole reply. Everything else in it is of no use here."""

    object: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: _Error | str | None = None
    prompt_token_ids: list[int] | None = None


_NO_WORDS = _Words()
_decoder = msgspec.json.Decoder(_Chunk)
_FINISHES = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}


class OpenAIEvents:
    """Reads one answer with `n` choices from `upstream`."""

    def __init__(self, upstream: str, n: int) -> None:
        self._upstream = upstream
        self._open = set(range(n))
        self._n = n
        self._last: Delta | None = None  # the newest ending, until it is known whether the usage belongs to it
        self._usage: Usage | None = None
        self._prompt_token_ids: tuple[int, ...] = ()
        self.is_done = False
        self.told_cost: ToldCost | None = None

    def read(self, data: bytes) -> Sequence[Delta]:
        """Return the deltas of one event. Raises Failure."""
        if data[:1] != b"{" and data.strip() == b"[DONE]":
            self.is_done = True
            return ()
        chunk = self._decode(data)
        if chunk.usage is not None:
            self._usage = sensible(_usage(chunk.usage))
            self.told_cost = chunk.usage
        if chunk.prompt_token_ids:
            self._prompt_token_ids = tuple(chunk.prompt_token_ids)
        return [delta for choice in chunk.choices or () if (delta := self._choice(choice)) is not None]

    def read_whole(self, body: bytes) -> Sequence[Delta]:
        """Return the deltas of a whole reply. Raises Failure."""
        return [*self.read(body), *self.end()]

    def end(self) -> Sequence[Delta]:
        """Return the last ending with the usage. Raises Failure if the stream ended before its choices did."""
        if self._open or self._last is None:
            raise transient(self._upstream, "ended its reply before the answer was complete")
        return [msgspec.structs.replace(self._last, usage=self._usage)]

    def _decode(self, data: bytes) -> _Chunk:
        try:
            chunk = decoded(_decoder, data)
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise transient(self._upstream, f"sent what is no reply of this wire ({err})") from err
        if chunk.error is not None:
            of_itself = chunk.error if isinstance(chunk.error, _Error) else _Error()
            raise self._failure(data, of_itself)
        if chunk.object == "error":
            raise self._failure(data, msgspec.json.decode(data, type=_Error, strict=False))
        return chunk

    def _failure(self, data: bytes, error: _Error) -> Exception:
        digits = str(error.code) if error.code is not None else ""
        status = int(digits) if digits.isdigit() and 400 <= int(digits) < 600 else None
        return of_event(self._upstream, data, status, error.type or digits)

    def _choice(self, choice: _Choice) -> Delta | None:
        if not 0 <= choice.index < self._n:
            raise transient(self._upstream, f"sent choice {choice.index} of {self._n}")
        if choice.index not in self._open:
            return None  # said again after its end
        words = choice.delta or choice.message or _NO_WORDS
        text = choice.text if choice.text is not None else _plain(words.content)
        is_more = choice.finish_reason or choice.token_ids or choice.logprobs or self._prompt_token_ids
        if not (is_more or words.reasoning_content or words.reasoning or words.refusal or words.tool_calls):
            return Delta(index=choice.index, text=text) if text else None  # nearly every event
        delta = Delta(
            index=choice.index,
            text=text,
            reasoning=words.reasoning_content or words.reasoning or "",
            refusal=words.refusal or "",
            tool_calls=tuple([_call(i, call) for i, call in enumerate(words.tool_calls)]) if words.tool_calls else (),
            logprobs=_logprobs(choice.logprobs) if choice.logprobs is not None else (),
            token_ids=tuple(choice.token_ids or ()),
            prompt_token_ids=self._prompt_token_ids,
            finish=self._finish(choice.finish_reason) if choice.finish_reason else None,
            stop_match=choice.stop_reason if choice.finish_reason else None,
        )
        if delta.finish is not None:
            return self._keep(delta)
        has_words = delta.text or delta.reasoning or delta.refusal or delta.tool_calls
        if not (has_words or delta.logprobs or delta.token_ids):
            return None  # a role; the prompt's tokens go with the first words
        self._prompt_token_ids = ()
        return delta

    def _finish(self, reason: str) -> FinishReason:
        if reason in ("error", "abort"):
            raise transient(self._upstream, f"ended its answer with '{reason}'")
        return _FINISHES.get(reason, FinishReason.STOP)

    def _keep(self, ending: Delta) -> Delta | None:
        """Keep an ending back until the usage has come; return the one that was kept before it."""
        self._open.discard(ending.index)
        self._prompt_token_ids = ()
        before, self._last = self._last, ending
        return before


def _plain(content: str | list[_Text] | None) -> str:
    if isinstance(content, list):
        return "".join(part.text or "" for part in content)
    return content or ""


def _call(position: int, call: _Call) -> ToolCallDelta:
    function = call.function or _Function()
    arguments = function.arguments
    return ToolCallDelta(
        index=position if call.index is None else call.index,
        call_id=call.id or "",
        name=function.name or "",
        arguments=msgspec.json.encode(arguments).decode() if isinstance(arguments, dict) else arguments or "",
    )


def _usage(usage: _Usage) -> Usage:
    prompt = usage.prompt_tokens_details or _PromptDetails()
    completion = usage.completion_tokens_details or _CompletionDetails()
    return Usage(
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=prompt.cached_tokens or usage.prompt_cache_hit_tokens or 0,
        cache_write_tokens=prompt.cache_write_tokens or 0,
        reasoning_tokens=completion.reasoning_tokens or 0,
    )


def _logprobs(logprobs: _Logprobs) -> tuple[PositionLogprobs, ...]:
    if logprobs.content is not None:
        return tuple(
            PositionLogprobs(chosen=_token(scored), top=tuple(_token(top) for top in scored.top_logprobs or ()))
            for scored in logprobs.content
        )
    tokens: Sequence[str] = logprobs.tokens or ()
    values = logprobs.token_logprobs or []
    tops = logprobs.top_logprobs or []
    positions: list[PositionLogprobs] = []
    for i, token in enumerate(tokens):
        value = values[i] if i < len(values) else None
        top = tops[i] if i < len(tops) else None
        alternatives = tuple(TokenLogprob(None, score, text, text.encode()) for text, score in (top or {}).items())
        chosen = TokenLogprob(None, 0.0 if value is None else value, token, token.encode())
        positions.append(PositionLogprobs(chosen=chosen, top=alternatives))
    return tuple(positions)


def _token(token: _Top) -> TokenLogprob:
    spelled = bytes(token.bytes) if token.bytes is not None else token.token.encode()
    return TokenLogprob(None, token.logprob, token.token, spelled)
