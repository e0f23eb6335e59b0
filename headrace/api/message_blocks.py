"""Deltas as content blocks of the Anthropic wire: blocks open and close as the kind of text changes.

Owns which block of one answer is open. Invariant: at most one block is open; indices count up without gaps; what is
opened is closed before the next begins.

    reasoning → thinking    text, refusal → text    tool call → tool_use    foreign part → as it came
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.api.anthropic_replies import (
    BlockChange,
    BlockDelta,
    BlockStart,
    BlockStop,
    ContentBlock,
    InputJsonDelta,
    SignatureDelta,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from headrace.core.delta import Delta, ToolCallDelta

BlockEvent = BlockStart | BlockDelta | BlockStop

CITATION = "citations_delta"  # a foreign part that belongs to the text before it
_EMPTY = msgspec.Raw(b"{}")


class BlockStream:
    """The blocks of one streamed answer."""

    def __init__(self) -> None:
        self._index = -1
        self._open: str | int | None = None  # "text", "thinking", or a tool call's number

    def push(self, delta: Delta) -> Iterator[BlockEvent]:
        """Yield the events of one delta."""
        if delta.reasoning:
            yield from self._grow("thinking", ThinkingBlock("", ""), ThinkingDelta(delta.reasoning))
        if delta.signature:
            yield from self._grow("thinking", ThinkingBlock("", ""), SignatureDelta(delta.signature))
        text = delta.text or delta.refusal
        if text:
            yield from self._grow("text", TextBlock(""), TextDelta(text))
        for piece in delta.tool_calls:
            yield from self._tool(piece)
        for part in delta.foreign:
            if part.wire != "anthropic":
                continue
            if part.kind == CITATION:
                yield from self._grow("text", TextBlock(""), msgspec.Raw(part.payload))
            else:
                yield from self.close()
                self._index += 1
                yield BlockStart(self._index, msgspec.Raw(part.payload))
                yield BlockStop(self._index)

    def close(self) -> Iterator[BlockEvent]:
        """End the open block, if there is one."""
        if self._open is not None:
            self._open = None
            yield BlockStop(self._index)

    def _tool(self, piece: ToolCallDelta) -> Iterator[BlockEvent]:
        block = ToolUseBlock(piece.call_id or f"call_{piece.index}", piece.name, _EMPTY)
        if piece.arguments:
            yield from self._grow(piece.index, block, InputJsonDelta(piece.arguments))
        else:
            yield from self._begin(piece.index, block)

    def _grow(self, kind: str | int, block: ContentBlock, change: BlockChange) -> Iterator[BlockEvent]:
        yield from self._begin(kind, block)
        yield BlockDelta(self._index, change)

    def _begin(self, kind: str | int, block: ContentBlock) -> Iterator[BlockEvent]:
        if self._open != kind:
            yield from self.close()
            self._open = kind
            self._index += 1
            yield BlockStart(self._index, block)


def whole_blocks(deltas: list[Delta]) -> list[ContentBlock]:
    """Return the blocks of a whole answer: what its stream would have built."""
    stream = BlockStream()
    blocks: list[ContentBlock] = []
    inputs: dict[int, list[str]] = {}
    for event in (event for delta in deltas for event in stream.push(delta)):
        if isinstance(event, BlockStart):
            blocks.append(event.content_block)
        elif isinstance(event, BlockDelta):
            block = blocks[event.index]
            if isinstance(event.delta, InputJsonDelta):
                inputs.setdefault(event.index, []).append(event.delta.partial_json)
            else:
                _add(block, event.delta)
    for index, pieces in inputs.items():
        block = blocks[index]
        if isinstance(block, ToolUseBlock):
            block.input = _as_object("".join(pieces))
    return blocks


def _add(block: ContentBlock, change: BlockChange) -> None:
    if isinstance(block, TextBlock) and isinstance(change, TextDelta):
        block.text += change.text
    elif isinstance(block, TextBlock) and isinstance(change, msgspec.Raw):
        cited = [] if isinstance(block.citations, msgspec.UnsetType) else block.citations
        block.citations = [*cited, msgspec.json.decode(change, type=_Cited).citation]
    elif isinstance(block, ThinkingBlock) and isinstance(change, ThinkingDelta):
        block.thinking += change.thinking
    elif isinstance(block, ThinkingBlock) and isinstance(change, SignatureDelta):
        block.signature += change.signature


class _Cited(msgspec.Struct):
    citation: msgspec.Raw


def _as_object(text: str) -> msgspec.Raw:
    """Return a call's input as this wire wants it; a model that wrote no JSON object keeps its words under one name."""
    try:
        if isinstance(msgspec.json.decode(text), dict):
            return msgspec.Raw(text.encode())
    except msgspec.DecodeError:
        pass
    return msgspec.Raw(msgspec.json.encode({"malformed_arguments": text}))
