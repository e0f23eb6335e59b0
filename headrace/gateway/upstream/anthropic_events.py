"""Replies of an Anthropic-like server as deltas: events of a stream, or one whole message.

Owns what one stream has to remember: its blocks by index, and the usage so far.
Invariant: the deltas keep the promise of `core.delta`; blocks of unknown kinds come out whole, as foreign
parts. A stream without `message_stop` is not complete.
Source: Anthropic API reference, Streaming messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from headrace.core.conversation import ForeignPart, Json
from headrace.core.delta import Delta, FinishReason, ToolCallDelta, Usage
from headrace.gateway.upstream.counts import sensible
from headrace.gateway.upstream.failure import of_event, transient
from headrace.gateway.upstream.reported import ToldCost, decoded


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(ToldCost):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _OutputDetails | None = None
    is_estimate: bool = False


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str | None = None
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")
    citations: list[msgspec.Raw] | None = None


class _Change(msgspec.Struct):
    """The delta of a block, or of the message."""

    type: str | None = None
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Message(msgspec.Struct):
    content: list[msgspec.Raw] = []
    usage: _Usage | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Error(msgspec.Struct):
    type: str = ""


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    message: _Message | None = None
    content_block: msgspec.Raw = msgspec.Raw()
    delta: msgspec.Raw = msgspec.Raw()
    usage: _Usage | None = None
    error: _Error | None = None


@dataclass(slots=True)
class _Open:
    """A block of the stream that has begun."""

    block: _Block
    raw: bytes
    tool_idx: int = 0
    pieces: list[str] = field(default_factory=list)


_event_decoder = msgspec.json.Decoder(_Event)
_message_decoder = msgspec.json.Decoder(_Message)
_block_decoder = msgspec.json.Decoder(_Block)
_change_decoder = msgspec.json.Decoder(_Change)
_UNSAID = msgspec.Raw()
_FINISHES = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
    "pause_turn": FinishReason.PAUSE,
}


class AnthropicEvents:
    """Reads one answer from `upstream`."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._blocks: dict[int, _Open] = {}
        self._num_tools = 0
        self._usage: _Usage | None = None
        self._stop: tuple[str, str | None] | None = None
        self.is_done = False

    def read(self, data: bytes) -> list[Delta]:
        """Return the deltas of one event. Raises Failure."""
        if self.is_done:
            return []
        try:
            return list(self._read(data))
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise transient(self._upstream, f"sent what is no event of this wire ({err})") from err

    def read_whole(self, body: bytes) -> list[Delta]:
        """Return the deltas of a whole message. Raises Failure."""
        deltas: list[Delta] = []
        try:
            event = decoded(_event_decoder, body)
            if event.type != "message":
                deltas.extend(self._read(body))
            message = decoded(_message_decoder, body)
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise transient(self._upstream, f"sent what is no message of this wire ({err})") from err
        for index, raw in enumerate(message.content):
            deltas.extend(self._begin(index, raw))
            deltas.extend(self._close(index))
        self._add_usage(message.usage)
        if message.stop_reason is not None:
            self._stop = (message.stop_reason, message.stop_sequence)
        self.is_done = True
        return [*deltas, *self.end()]

    def end(self) -> list[Delta]:
        """Return the ending with the usage. Raises Failure if the stream ended before its message did."""
        if not self.is_done or self._stop is None:
            raise transient(self._upstream, "ended its reply before the answer was complete")
        reason, sequence = self._stop
        finish = _FINISHES.get(reason, FinishReason.STOP)
        usage = None if self._usage is None else sensible(_as_usage(self._usage))
        return [Delta(finish=finish, stop_match=sequence, usage=usage)]

    @property
    def told_cost(self) -> ToldCost | None:
        """Return what its usage says of money."""
        return self._usage

    def _read(self, data: bytes) -> Iterator[Delta]:
        event = decoded(_event_decoder, data)
        match event.type:
            case "message_start":
                self._add_usage(event.message.usage if event.message is not None else None)
            case "content_block_start" if bytes(event.content_block):
                yield from self._begin(event.index, event.content_block)
            case "content_block_delta" if bytes(event.delta):
                yield from self._grow(event.index, event.delta)
            case "content_block_stop":
                yield from self._close(event.index)
            case "message_delta":
                self._add_usage(event.usage)
                change = _change_decoder.decode(event.delta) if bytes(event.delta) else _Change()
                if change.stop_reason is not None:
                    self._stop = (change.stop_reason, change.stop_sequence)
            case "message_stop":
                self.is_done = True
            case "error":
                raise of_event(self._upstream, data, None, event.error.type if event.error is not None else "")
            case _:
                pass  # ping, and kinds to come

    def _begin(self, index: int, raw: msgspec.Raw) -> Iterator[Delta]:
        block = _block_decoder.decode(raw)
        opened = self._blocks[index] = _Open(block, bytes(raw), self._num_tools)
        match block.type:
            case "text":
                if block.text:
                    yield Delta(text=block.text)
                for cited in block.citations or ():
                    payload = Json(msgspec.json.encode({"type": "citations_delta", "citation": cited}))
                    yield Delta(foreign=(ForeignPart("anthropic", "citations_delta", payload),))
            case "thinking":
                if block.thinking or block.signature:
                    yield Delta(reasoning=block.thinking, signature=block.signature or "")
            case "tool_use":
                self._num_tools += 1
                arguments = "" if bytes(block.input) == b"{}" else bytes(block.input).decode()
                yield Delta(tool_calls=(ToolCallDelta(opened.tool_idx, block.id, block.name, arguments),))
            case _:
                pass  # comes out whole at its end

    def _grow(self, index: int, raw: msgspec.Raw) -> Iterator[Delta]:
        opened = self._blocks.get(index)
        if opened is None:
            raise transient(self._upstream, f"sent more of block {index}, which has not begun")
        change = _change_decoder.decode(raw)
        match change.type:
            case "text_delta":
                yield Delta(text=change.text)
            case "thinking_delta":
                yield Delta(reasoning=change.thinking)
            case "signature_delta":
                yield Delta(signature=change.signature)
            case "input_json_delta" if opened.block.type == "tool_use":
                if change.partial_json:
                    yield Delta(tool_calls=(ToolCallDelta(opened.tool_idx, arguments=change.partial_json),))
            case "input_json_delta":
                opened.pieces.append(change.partial_json)
            case str(kind):
                yield Delta(foreign=(ForeignPart("anthropic", kind, Json(bytes(raw))),))
            case None:
                pass

    def _close(self, index: int) -> Iterator[Delta]:
        opened = self._blocks.pop(index, None)
        if opened is None or opened.block.type in ("text", "thinking", "tool_use"):
            return
        payload = opened.raw
        if opened.pieces:
            fields = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
            fields["input"] = msgspec.Raw("".join(opened.pieces).encode())
            payload = msgspec.json.encode(fields)
        yield Delta(foreign=(ForeignPart("anthropic", opened.block.type, Json(payload)),))

    def _add_usage(self, usage: _Usage | None) -> None:
        """Take over what a later usage knows better; the counts are cumulative."""
        if usage is None:
            return
        if self._usage is None:
            self._usage = usage
            return
        for name in usage.__struct_fields__:
            value = getattr(usage, name)
            if value is not None and value != _UNSAID:
                setattr(self._usage, name, value)


def _as_usage(usage: _Usage) -> Usage:
    read, kept = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    kept_1h = usage.cache_creation.ephemeral_1h_input_tokens if usage.cache_creation is not None else None
    thought = usage.output_tokens_details.thinking_tokens if usage.output_tokens_details is not None else None
    return Usage(
        prompt_tokens=(usage.input_tokens or 0) + read + kept,
        completion_tokens=usage.output_tokens or 0,
        cached_tokens=read,
        cache_write_tokens=kept,
        cache_write_1h_tokens=kept_1h or 0,
        reasoning_tokens=thought or 0,
        is_estimate=usage.is_estimate,
    )
