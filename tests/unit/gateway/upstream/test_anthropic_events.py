"""Replies of Anthropic-like servers as deltas, and the whole way through a pool."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.core.delta import Delta, FinishReason, ToolCallDelta
from headrace.core.errors import Overloaded
from headrace.core.upstream_settings import FailoverSettings
from headrace.gateway.upstream.anthropic_events import AnthropicEvents
from headrace.gateway.upstream.failure import Failure, Kind
from tests.unit.gateway.upstream.scripted import (
    ScriptedServer,
    a_request,
    deltas_of,
    fleet_of,
    play,
    status,
    stream,
    text_of,
)


def start(**usage: int) -> Any:
    counts = {"input_tokens": 5, "output_tokens": 1, **usage}
    return {"type": "message_start", "message": {"content": [], "usage": counts}}


def block(index: int, **block: Any) -> Any:
    return {"type": "content_block_start", "index": index, "content_block": block}


def grow(index: int, **delta: Any) -> Any:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def stop(index: int) -> Any:
    return {"type": "content_block_stop", "index": index}


def end(reason: str = "end_turn", sequence: str | None = None, tokens: int = 9) -> list[Any]:
    delta = {"stop_reason": reason, "stop_sequence": sequence}
    return [
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": tokens}},
        {"type": "message_stop"},
    ]


def read(*events: Any) -> list[Delta]:
    reader = AnthropicEvents("u")
    deltas = [delta for event in events for delta in reader.read(json.dumps(event).encode())]
    return [*deltas, *reader.end()]


TEXT = [block(0, type="text", text=""), grow(0, type="text_delta", text="Hel"), grow(0, type="text_delta", text="lo")]


def test_text_comes_piece_by_piece_and_the_usage_last() -> None:
    deltas = read(start(cache_read_input_tokens=3, cache_creation_input_tokens=2), *TEXT, stop(0), *end())
    assert "".join(delta.text for delta in deltas) == "Hello"
    assert deltas[-1].finish is FinishReason.STOP
    usage = deltas[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (10, 9)
    assert (usage.cached_tokens, usage.cache_write_tokens) == (3, 2)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("max_tokens", FinishReason.LENGTH),
        ("tool_use", FinishReason.TOOL_CALLS),
        ("refusal", FinishReason.CONTENT_FILTER),
        ("pause_turn", FinishReason.PAUSE),
        ("something_new", FinishReason.STOP),
    ],
)
def test_reasons_are_translated(reason: str, finish: FinishReason) -> None:
    assert read(start(), *TEXT, stop(0), *end(reason))[-1].finish is finish


def test_a_stop_sequence_is_told() -> None:
    assert read(start(), *TEXT, *end("stop_sequence", "END"))[-1].stop_match == "END"


def test_thoughts_calls_and_unknown_blocks_keep_their_order() -> None:
    deltas = read(
        start(),
        block(0, type="thinking", thinking="", signature=""),
        grow(0, type="thinking_delta", thinking="hm"),
        grow(0, type="signature_delta", signature="sig"),
        stop(0),
        block(1, type="redacted_thinking", data="zz"),
        stop(1),
        block(2, type="tool_use", id="c1", name="get", input={}),
        grow(2, type="input_json_delta", partial_json='{"a"'),
        grow(2, type="input_json_delta", partial_json=":1}"),
        stop(2),
        block(3, type="server_tool_use", id="s", name="web_search", input={}),
        grow(3, type="input_json_delta", partial_json='{"q":"x"}'),
        stop(3),
        block(4, type="tool_use", id="c2", name="put", input={}),
        stop(4),
        *end("tool_use"),
    )
    assert (deltas[0].reasoning, deltas[1].signature) == ("hm", "sig")
    assert json.loads(deltas[2].foreign[0].payload) == {"type": "redacted_thinking", "data": "zz"}
    pieces = [piece for delta in deltas for piece in delta.tool_calls]
    assert pieces == [
        ToolCallDelta(0, "c1", "get"), ToolCallDelta(0, arguments='{"a"'), ToolCallDelta(0, arguments=":1}"),
        ToolCallDelta(1, "c2", "put"),
    ]  # fmt: skip
    searched = [part for delta in deltas for part in delta.foreign if part.kind == "server_tool_use"]
    assert json.loads(searched[0].payload)["input"] == {"q": "x"}


def test_citations_stay_with_their_text() -> None:
    cited = {"type": "char_location", "cited_text": "x"}
    deltas = read(start(), *TEXT, grow(0, type="citations_delta", citation=cited), stop(0), *end())
    part = next(delta.foreign[0] for delta in deltas if delta.foreign)
    assert json.loads(part.payload) == {"type": "citations_delta", "citation": cited}


def test_a_whole_message_reads_like_its_stream() -> None:
    message = {
        "type": "message",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "sig"},
            {"type": "text", "text": "Hello"},
            {"type": "tool_use", "id": "c1", "name": "get", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 5, "output_tokens": 9},
    }
    deltas = list(AnthropicEvents("u").read_whole(json.dumps(message).encode()))
    assert (deltas[0].reasoning, deltas[0].signature, deltas[1].text) == ("hm", "sig", "Hello")
    assert deltas[2].tool_calls == (ToolCallDelta(0, "c1", "get", '{"a": 1}'),)
    assert deltas[-1].finish is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("overloaded_error", Kind.THROTTLED), ("api_error", Kind.TRANSIENT), ("invalid_request_error", Kind.REJECTED)],
)
def test_errors_inside_a_stream_are_sorted(kind: str, expected: Kind) -> None:
    with pytest.raises(Failure) as caught:
        read(start(), {"type": "error", "error": {"type": kind, "message": "x"}})
    assert caught.value.kind is expected


@pytest.mark.parametrize("events", [[start()], [start(), *TEXT], [start(), *TEXT, end()[0]], [{"type": "ping"}]])
def test_a_stream_without_its_end_is_no_answer(events: list[Any]) -> None:
    with pytest.raises(Failure, match="before the answer was complete"):
        read(*events)


@pytest.mark.parametrize("event", [b"{", b'{"type": 5}', json.dumps(grow(7, type="text_delta", text="x")).encode()])
def test_nonsense_is_a_failure(event: bytes) -> None:
    with pytest.raises(Failure) as caught:
        list(AnthropicEvents("u").read(event))
    assert caught.value.kind is Kind.TRANSIENT


def sent(*events: Any) -> list[bytes]:
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


def test_the_wire_works_through_a_pool_with_its_own_headers() -> None:
    async def run() -> None:
        whole = sent(start(), {"type": "ping"}, *TEXT, stop(0), *end())
        async with ScriptedServer([status(529), stream(*whole)]) as server:
            fleet = fleet_of(server.url, profile="anthropic", api_key="env:K")
            request = a_request(wire="anthropic", headers=(("anthropic-beta", "b1"),))
            assert text_of(await deltas_of(fleet, request)) == "Hello"
            call = server.calls[-1]
            assert call.path == "/v1/messages"
            assert (call.headers["x-api-key"], call.headers["anthropic-version"]) == ("env:K", "2023-06-01")
            assert call.headers["anthropic-beta"] == "b1"
            assert "authorization" not in call.headers

    play(run())


def test_tokens_are_counted_there() -> None:
    async def run() -> None:
        async with ScriptedServer([status(200, {"input_tokens": 42})]) as server:
            fleet = fleet_of(server.url, profile="anthropic")
            assert await fleet.pool("m").count_tokens(a_request()) == 42
            assert server.calls[0].path == "/v1/messages/count_tokens"

    play(run())


def test_an_overloaded_only_upstream_is_told_as_overload() -> None:
    async def run() -> None:
        async with ScriptedServer([status(529)]) as server:
            fleet = fleet_of(server.url, profile="anthropic", policy=FailoverSettings(retry_s=0.0))
            with pytest.raises(Overloaded):
                await deltas_of(fleet, a_request())

    play(run())
