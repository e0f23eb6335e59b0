"""Bodies for Anthropic-like servers: words in their places, hints kept, what has no word refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from headrace.core.conversation import (
    CacheHint,
    Conversation,
    ForeignPart,
    ForeignTool,
    ImagePart,
    Json,
    Message,
    Reasoning,
    ReasoningPart,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from headrace.gateway.upstream.anthropic_body import encode_count, encode_request
from headrace.gateway.upstream.failure import Failure, Kind
from tests.unit.gateway.upstream.scripted import a_request


def body_of(*messages: Message, given: dict[str, Any] | None = None, **conversation: Any) -> Any:
    request = a_request(**{"wants_stream": False, **(given or {})})
    if messages:
        request = msgspec.structs.replace(request, source=Conversation(messages=messages, **conversation))
    return json.loads(encode_request(request, "their-m", "u", 4096))


def user(*parts: Any) -> Message:
    return Message("user", parts)


ASK = user(TextPart("hi"))


def test_a_plain_question_gets_the_bound_that_the_wire_demands() -> None:
    assert body_of() == {
        "model": "their-m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4096, "stream": False,
    }  # fmt: skip
    assert body_of(given={"max_tokens": 7})["max_tokens"] == 7


def test_system_messages_go_to_the_top_with_their_hints() -> None:
    system = Message("system", (TextPart("be"), TextPart("kind", CacheHint("1h"))))
    assert body_of(system, ASK)["system"] == [
        {"type": "text", "text": "be"},
        {"type": "text", "text": "kind", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ]


def test_a_call_and_its_results_alternate_as_the_wire_demands() -> None:
    body = body_of(
        ASK,
        Message("assistant", (ReasoningPart("hm", "sig"), TextPart("Look."), ToolCallPart("c1", "get", '{"a":1}'))),
        Message("tool", (ToolResultPart("c1", (TextPart("rain"),)),)),
        Message("tool", (ToolResultPart("c2", (TextPart("x"), ImagePart("https://x/y.png")), is_error=True),)),
        user(TextPart("and?")),
    )
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
        {"type": "text", "text": "Look."},
        {"type": "tool_use", "id": "c1", "name": "get", "input": {"a": 1}},
    ]
    results = body["messages"][2]["content"]
    assert results[0] == {"type": "tool_result", "tool_use_id": "c1", "content": "rain"}
    assert results[1]["is_error"] is True
    assert results[1]["content"][1]["source"] == {"type": "url", "url": "https://x/y.png"}
    assert results[2] == {"type": "text", "text": "and?"}


def test_pictures_in_data_urls_become_base64_sources() -> None:
    block = body_of(user(ImagePart("data:image/png;base64,QUJD", None, CacheHint())))["messages"][0]["content"][0]
    assert block["source"] == {"type": "base64", "media_type": "image/png", "data": "QUJD"}
    assert block["cache_control"] == {"type": "ephemeral"}


def test_thoughts_without_signature_stay_at_home() -> None:
    said = Message("assistant", (ReasoningPart("hm"), TextPart("yes")))
    assert body_of(ASK, said)["messages"][1]["content"] == [{"type": "text", "text": "yes"}]


def test_tools_and_choice_are_spelled_in_this_wires_words() -> None:
    tools = (
        Tool("get", "look", Json(b'{"type":"object"}'), True, CacheHint()),
        ForeignTool("anthropic", "web_search_20250305", Json(b'{"type":"web_search_20250305","name":"web_search"}')),
    )
    body = body_of(ASK, tools=tools, tool_choice=ToolChoice("named", "get"), parallel_tool_calls=False)
    assert body["tools"][0] == {
        "name": "get", "description": "look", "input_schema": {"type": "object"}, "strict": True,
        "cache_control": {"type": "ephemeral"},
    }  # fmt: skip
    assert body["tools"][1]["name"] == "web_search"
    assert body["tool_choice"] == {"type": "tool", "name": "get", "disable_parallel_tool_use": True}
    assert body_of(ASK, tools=tools[:1], tool_choice=ToolChoice("required"))["tool_choice"] == {"type": "any"}
    assert "tool_choice" not in body_of(ASK, tools=tools[:1])


@pytest.mark.parametrize(
    ("reasoning", "max_tokens", "expected"),
    [
        (Reasoning(is_enabled=True, budget_tokens=2000), 4000, {"type": "enabled", "budget_tokens": 2000}),
        (Reasoning(is_enabled=False), 4000, {"type": "disabled"}),
        (Reasoning(is_enabled=True, effort="high"), 8000, {"type": "enabled", "budget_tokens": 4000}),
        (Reasoning(is_enabled=True, effort="low"), 8000, {"type": "enabled", "budget_tokens": 2048}),
        (Reasoning(is_enabled=True), 8000, {"type": "adaptive"}),
    ],
)
def test_thinking_gets_a_budget_below_the_bound(reasoning: Reasoning, max_tokens: int, expected: Any) -> None:
    assert body_of(ASK, given={"max_tokens": max_tokens}, reasoning=reasoning)["thinking"] == expected


def test_values_labels_and_fields_of_the_own_wire_are_sent() -> None:
    given = {
        "wire": "anthropic", "temperature": 0.5, "top_k": 4, "stop": ("x",), "labels": (("user", Json(b'"me"')),),
        "extras": (("container", Json(b'"c1"')),),
    }  # fmt: skip
    body = body_of(ASK, given=given)
    assert (body["temperature"], body["top_k"], body["stop_sequences"]) == (0.5, 4, ["x"])
    assert body["metadata"] == {"user_id": "me"}
    assert body["container"] == "c1"


def test_a_schema_is_asked_for_and_a_bare_json_mode_is_not_known() -> None:
    schema = Json(b'{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object"}}}')
    asked = body_of(ASK, response_format=schema)["output_config"]["format"]
    assert asked == {"type": "json_schema", "schema": {"type": "object"}}
    with pytest.raises(Failure, match="json_object"):
        body_of(ASK, response_format=Json(b'{"type":"json_object"}'))


@pytest.mark.parametrize(
    "given",
    [
        {"n": 2}, {"seed": 1}, {"logprobs": 0}, {"logit_bias": (("1", 1.0),)}, {"presence_penalty": 0.5},
        {"min_p": 0.1}, {"stop_token_ids": (1,)}, {"extras": (("guided_json", Json(b"{}")),)},
    ],
)  # fmt: skip
def test_values_without_a_word_in_this_wire_are_refused_by_name(given: dict[str, Any]) -> None:
    name = "guided_json" if "extras" in given else next(iter(given))
    with pytest.raises(Failure, match=name) as caught:
        body_of(ASK, given=given)
    assert caught.value.kind is Kind.MISPLACED


def test_parts_of_the_own_wire_travel_as_they_came() -> None:
    part = ForeignPart("anthropic", "redacted_thinking", Json(b'{"type":"redacted_thinking","data":"zz"}'))
    body = body_of(ASK, Message("assistant", (part, TextPart("yes"))))
    assert body["messages"][1]["content"][0] == {"type": "redacted_thinking", "data": "zz"}
    with pytest.raises(Failure, match="input_audio"):
        body_of(user(ForeignPart("openai", "input_audio", Json(b"{}"))))


def test_a_completion_is_not_this_wires() -> None:
    request = msgspec.structs.replace(a_request(), source="once upon")
    with pytest.raises(Failure, match="prompt"):
        encode_request(request, "m", "u", 10)


def test_counting_sends_the_prompt_alone() -> None:
    assert json.loads(encode_count(a_request(max_tokens=5), "m", "u")) == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}],
    }  # fmt: skip
