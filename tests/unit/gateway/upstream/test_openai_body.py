"""Bodies for OpenAI-like servers: nothing that was given is lost, nothing that was not is added."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest

from headrace.core.conversation import (
    CacheHint,
    Conversation,
    ForeignPart,
    ForeignTool,
    Given,
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
from headrace.core.upstream_settings import ProfileName
from headrace.gateway.upstream.failure import Failure, Kind
from headrace.gateway.upstream.openai_body import Dialect, encode_request
from headrace.gateway.upstream.profiles import profiles
from tests.unit.gateway.upstream.scripted import a_request


def body_of(profile: ProfileName = "generic", conversation: Conversation | str | None = None, **given: Any) -> Any:
    request = a_request(**{"wants_stream": False, **given})
    if conversation is not None:
        request = msgspec.structs.replace(request, source=conversation)
    return json.loads(encode_request(request, "their-m", Dialect("u", profiles()[profile], profile)))


def talk(*parts: Any, role: Any = "user", **more: Any) -> Conversation:
    return Conversation(messages=(Message(role, parts),), **more)


def refused(profile: ProfileName, conversation: Conversation | None = None, **given: Any) -> str:
    with pytest.raises(Failure) as caught:
        body_of(profile, conversation, **given)
    assert caught.value.kind is Kind.MISPLACED
    return caught.value.error.message


def test_every_profile_in_the_settings_is_in_the_table() -> None:
    assert set(profiles()) == set(get_args(ProfileName))


def test_a_plain_question_has_nothing_but_what_was_said() -> None:
    assert body_of() == {"model": "their-m", "messages": [{"role": "user", "content": "hi"}], "stream": False}


def test_streams_ask_for_usage() -> None:
    body = body_of(wants_stream=True)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_values_go_under_the_names_of_the_profile() -> None:
    assert body_of("openai", max_tokens=5)["max_completion_tokens"] == 5
    assert body_of("vllm", max_tokens=5)["max_tokens"] == 5
    assert body_of("llamacpp", repetition_penalty=1.1)["repeat_penalty"] == 1.1
    assert body_of("lmdeploy", min_tokens=3)["min_new_tokens"] == 3


@pytest.mark.parametrize(
    ("profile", "given", "name"),
    [
        ("openai", {"top_k": 5}, "top_k"),
        ("tgi", {"n": 2}, "n"),
        ("tgi", {"logit_bias": (("1", 2.0),)}, "logit_bias"),
        ("ollama", {"logprobs": 2}, "logprobs"),
        ("tgi", {"extras": (("chat_template", Json(b'"x"')),)}, "chat_template"),
        ("generic", {"wire": "anthropic", "extras": (("mcp_servers", Json(b"[]")),)}, "mcp_servers"),
    ],
)
def test_what_a_server_does_not_understand_is_refused_by_name(profile: Any, given: Any, name: str) -> None:
    assert f"'{name}'" in refused(profile, **given)


def test_values_that_were_given_are_sent_whole() -> None:
    body = body_of(
        "generic",
        temperature=0.0,
        top_p=0.9,
        seed=7,
        stop=("a", "b"),
        logit_bias=(("5", -1.0),),
        n=2,
        logprobs=3,
        extras=(("guided_json", Json(b'{"type":"object"}')),),
        labels=(("user", Json(b'"me"')),),
    )
    assert body["temperature"] == 0.0
    assert body["stop"] == ["a", "b"]
    assert body["logit_bias"] == {"5": -1.0}
    assert (body["logprobs"], body["top_logprobs"], body["n"]) == (True, 3, 2)
    assert body["guided_json"] == {"type": "object"}
    assert body["user"] == "me"


def test_labels_that_a_server_does_not_know_are_left_out() -> None:
    assert "prompt_cache_key" not in body_of("tgi", labels=(("prompt_cache_key", Json(b'"k"')),))


def test_pictures_and_several_texts_stay_parts() -> None:
    picture = ImagePart("data:image/png;base64,AA", "low")
    body = body_of(conversation=talk(TextPart("what?"), picture))
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
    ]


def test_tools_calls_and_results_have_their_places() -> None:
    conversation = Conversation(
        messages=(
            Message("user", (TextPart("weather?"),)),
            Message("assistant", (TextPart("Let me see."), ToolCallPart("c1", "get", '{"at":"x"}'))),
            Message("user", (ToolResultPart("c1", (TextPart("rain"),)), TextPart("and?"))),
            Message("tool", (ToolResultPart("c2", (TextPart("boom"),), is_error=True),)),
        ),
        tools=(
            Tool("get", "weather", Json(b'{"type":"object"}'), True),
            ForeignTool("openai", "custom", Json(b'{"a":1}')),
        ),
        tool_choice=ToolChoice("named", "get"),
        parallel_tool_calls=False,
    )
    body = body_of(conversation=conversation)
    assert body["tools"][0]["function"] == {
        "name": "get",
        "description": "weather",
        "parameters": {"type": "object"},
        "strict": True,
    }
    assert body["tools"][1] == {"a": 1}
    assert body["tool_choice"] == {"type": "function", "function": {"name": "get"}}
    assert body["parallel_tool_calls"] is False
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["user", "assistant", "tool", "user", "tool"]
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"at":"x"}'
    assert body["messages"][2] == {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    assert body["messages"][4]["content"] == "Error: boom"


def test_pictures_in_a_tools_result_follow_as_the_users() -> None:
    result = ToolResultPart("c1", (TextPart("see"), ImagePart("https://x/y.png")))
    messages = body_of(conversation=talk(result))["messages"]
    assert [message["role"] for message in messages] == ["tool", "user"]
    assert messages[1]["content"][0]["image_url"]["url"] == "https://x/y.png"


def test_ollama_takes_tools_but_no_choice() -> None:
    tools = (Tool("get"),)
    assert "tool_choice" not in body_of("ollama", talk(TextPart("x"), tools=tools, tool_choice=ToolChoice("auto")))
    assert "tool_choice" in refused("ollama", talk(TextPart("x"), tools=tools, tool_choice=ToolChoice("required")))


def test_cache_hints_reach_servers_that_keep_them() -> None:
    hinted = talk(TextPart("long", CacheHint("1h")))
    kept = {"type": "ephemeral", "ttl": "1h"}
    assert body_of("headrace", hinted)["messages"][0]["content"][0]["cache_control"] == kept
    assert body_of("openai", hinted)["messages"][0]["content"] == "long"


def test_thoughts_go_back_where_they_are_taken() -> None:
    history = talk(ReasoningPart("hm"), TextPart("yes"), role="assistant")
    assert body_of("vllm", history)["messages"][0]["reasoning_content"] == "hm"
    assert body_of("openai", history)["messages"][0] == {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("profile", "reasoning", "expected"),
    [
        ("openai", Reasoning(effort="low"), {"reasoning_effort": "low"}),
        ("openai", Reasoning(is_enabled=True, budget_tokens=20000), {"reasoning_effort": "high"}),
        ("vllm", Reasoning(is_enabled=False), {"chat_template_kwargs": {"enable_thinking": False}}),
        ("vllm", Reasoning(is_enabled=True, budget_tokens=5), {"chat_template_kwargs": {"enable_thinking": True}}),
        ("tgi", Reasoning(is_enabled=False), {}),
    ],
)
def test_thinking_is_asked_for_in_the_servers_way(profile: Any, reasoning: Reasoning, expected: Any) -> None:
    body = body_of(profile, talk(TextPart("x"), reasoning=reasoning))
    extra = {name: value for name, value in body.items() if name not in ("model", "messages", "stream")}
    assert extra == expected


def test_thinking_that_cannot_be_asked_for_is_refused() -> None:
    assert "reasoning_effort" in refused("tgi", talk(TextPart("x"), reasoning=Reasoning(effort="high")))


def test_parts_of_another_wire_are_refused_by_kind() -> None:
    part = ForeignPart("anthropic", "document", Json(b"{}"))
    assert "document" in refused("generic", talk(part))


def test_prompts_are_texts_or_tokens() -> None:
    assert body_of(conversation="once")["prompt"] == "once"
    request = msgspec.structs.replace(a_request(), source=None, prompt=(1, 2))
    sent = json.loads(encode_request(request, "m", Dialect("u", profiles()["vllm"], "vllm")))
    assert sent["prompt"] == [1, 2]
    with pytest.raises(Failure, match="token ids"):
        encode_request(request, "m", Dialect("u", profiles()["tgi"], "tgi"))


def test_every_given_value_reaches_the_generic_server() -> None:
    values: dict[str, Any] = {
        "max_tokens": 1, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "typical_p": 0.9,
        "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.4, "logit_bias": (("1", 1.0),),
        "seed": 1, "stop": ("x",), "stop_token_ids": (2,), "min_tokens": 1, "ignore_eos": True,
        "include_stop_text": True, "skip_special_tokens": False, "n": 2, "logprobs": 1,
    }  # fmt: skip
    known = set(Given.__struct_fields__) - {"wire", "wants_stream", "extras", "labels", "headers"}
    assert set(values) == known
    for name, value in values.items():
        extra = set(body_of(**{name: value})) - set(body_of())
        assert extra, name
