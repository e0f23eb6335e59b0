"""Replies of OpenAI-like servers as deltas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.core.delta import Delta, FinishReason, ToolCallDelta
from headrace.gateway.upstream.failure import Failure, Kind
from headrace.gateway.upstream.openai_events import OpenAIEvents


def read(*events: Any, n: int = 1) -> list[Delta]:
    reader = OpenAIEvents("u", n)
    deltas = [delta for event in events for delta in reader.read(json.dumps(event).encode())]
    return [*deltas, *reader.end()]


def choice(index: int = 0, finish: str | None = None, **delta: Any) -> Any:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def test_usage_rides_on_the_last_ending() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    deltas = read(choice(1, content="b"), choice(0, "stop"), choice(1, "length"), {"choices": [], "usage": usage}, n=2)
    assert [(delta.index, delta.finish) for delta in deltas] == [
        (1, None), (0, FinishReason.STOP), (1, FinishReason.LENGTH),
    ]  # fmt: skip
    assert [delta.usage is not None for delta in deltas] == [False, False, True]
    last = deltas[-1].usage
    assert last is not None
    assert (last.prompt_tokens, last.cached_tokens, last.reasoning_tokens) == (10, 6, 3)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_are_kept_apart_from_text(field: str) -> None:
    deltas = read(choice(**{field: "hm"}), choice(content="yes"), choice(finish="stop"))
    assert [(delta.reasoning, delta.text) for delta in deltas] == [("hm", ""), ("", "yes"), ("", "")]


def test_the_tokens_of_a_prompt_come_with_the_first_words_even_if_a_role_came_before() -> None:
    role = {**choice(role="assistant", content=""), "prompt_token_ids": [5, 6]}
    deltas = read(role, choice(content="a"), choice(content="b"), choice(finish="stop"))
    assert [(delta.text, delta.prompt_token_ids) for delta in deltas] == [("a", (5, 6)), ("b", ()), ("", ())]


def test_tool_calls_come_in_pieces() -> None:
    deltas = read(
        choice(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "get", "arguments": ""}}]),
        choice(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
        choice(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
        choice(finish="tool_calls"),
    )
    assert deltas[0].tool_calls == (ToolCallDelta(0, "c1", "get", ""),)
    assert "".join(delta.tool_calls[0].arguments for delta in deltas[:-1]) == '{"a":1}'
    assert deltas[-1].finish is FinishReason.TOOL_CALLS


def test_a_whole_call_without_index_and_with_an_object_is_understood() -> None:
    calls = [{"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}, {"id": "d", "function": {"name": "g"}}]
    reader = OpenAIEvents("u", 1)
    body = {"choices": [{"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}]}
    deltas = list(reader.read_whole(json.dumps(body).encode()))
    assert deltas[-1].tool_calls == (ToolCallDelta(0, "c", "f", '{"a":1}'), ToolCallDelta(1, "d", "g", ""))


def test_logprobs_of_chats_and_completions_come_through() -> None:
    top = [{"token": "a", "logprob": -0.1, "bytes": [97]}, {"token": "b", "logprob": -2.0}]
    chat = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": top}]}
    lists = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1, "b": -2.0}], "text_offset": [0]}
    for logprobs in (chat, lists):
        event = {"choices": [{"index": 0, "text": "a", "finish_reason": "stop", "logprobs": logprobs}]}
        position = read(event)[0].logprobs[0]
        assert (position.chosen.text, position.chosen.logprob) == ("a", -0.1)
        assert [(token.text, token.logprob) for token in position.top] == [("a", -0.1), ("b", -2.0)]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"error": {"message": "x", "code": 429}}, Kind.THROTTLED),
        ({"error": {"message": "x", "code": "429"}}, Kind.THROTTLED),
        ({"error": {"message": "x", "type": "invalid_request_error"}}, Kind.REJECTED),
        ({"error": {"message": "x", "type": "server_error", "code": "internal"}}, Kind.TRANSIENT),
        ({"object": "error", "message": "x", "code": 400}, Kind.REJECTED),
        ({"error": "x"}, Kind.TRANSIENT),
    ],
)
def test_errors_inside_a_stream_are_sorted(error: Any, kind: Kind) -> None:
    with pytest.raises(Failure) as caught:
        read(error)
    assert caught.value.kind is kind


@pytest.mark.parametrize("reason", ["eos_token", "stop_sequence", "end_turn"])
def test_unknown_endings_count_as_stops(reason: str) -> None:
    assert read(choice(content="x"), choice(finish=reason))[-1].finish is FinishReason.STOP


def test_nulls_are_as_good_as_nothing() -> None:
    event = {
        "choices": [
            {"index": 0, "delta": {"content": None, "tool_calls": None}, "finish_reason": "", "logprobs": None}
        ],
        "usage": None,
        "error": None,
    }
    assert read(event, choice(content="x", finish="stop"))[0].text == "x"
