"""The OpenAI wire for a model behind remote upstreams: words go out whole, deltas of every kind come back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.api import Models, RemoteModel
from headrace.core.conversation import CacheHint, ForeignPart, ImagePart, TextPart, Tool, ToolCallPart, ToolResultPart
from headrace.core.delta import Delta, FinishReason, ToolCallDelta, Usage
from tests.unit.api.test_chat import Scripted, events

USAGE = Usage(prompt_tokens=9, completion_tokens=4, cached_tokens=2, reasoning_tokens=1)
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}, "strict": True}}


@pytest.fixture
def remote(make_api: Any) -> Any:
    """An API over one remote model that gives the deltas it is told to."""

    def make(*deltas: Delta) -> Any:
        upstream = Scripted(*deltas or (Delta(text="ok", finish=FinishReason.STOP, usage=USAGE),))
        api = make_api(upstream)
        model = RemoteModel(name="far", root="upstream:u", upstream=api.upstream, created=7)
        return make_api(upstream, models=Models([model])), api.upstream

    return make


def asked(remote: Any, **body: Any) -> Any:
    """The core request that a chat body becomes."""
    api, recorder = remote()
    response = api.chat(**body)
    assert response.status_code == 200, response.text
    return recorder.requests[0]


def test_words_and_values_travel_as_they_were_given(remote: Any) -> None:
    request = asked(
        remote,
        content="hi",
        temperature=0.0,
        max_completion_tokens=7,
        stop="x",
        seed=3,
        logit_bias={"5": 1.0},
        metadata={"a": "b"},
        guided_json={"type": "object"},
        service_tier="auto",
    )
    assert request.prompt == ()
    assert request.source.messages[0].parts == (TextPart("hi"),)
    given = request.given
    assert (given.temperature, given.max_tokens, given.stop, given.seed) == (0.0, 7, ("x",), 3)
    assert given.logit_bias == (("5", 1.0),)
    assert given.extras == (("guided_json", b'{"type":"object"}'),)
    assert given.labels == (("metadata", b'{"a":"b"}'),)
    assert given.top_p is None
    assert not given.wants_stream


def test_messages_keep_every_part(remote: Any) -> None:
    api, recorder = remote()
    call = {"id": "c", "type": "function", "function": {"name": "get", "arguments": '{"a":1}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "user",
            "name": "ann",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "high"}},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
            ],
        },
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    assert api.post("/v1/chat/completions", messages=messages, tools=[TOOL]).status_code == 200
    said = recorder.requests[0].source
    assert said.messages[0].role == "system"
    assert said.messages[0].parts == (TextPart("be", CacheHint()),)
    assert said.messages[1].name == "ann"
    assert said.messages[1].parts[0] == ImagePart("https://x/y.png", "high")
    audio = said.messages[1].parts[1]
    assert isinstance(audio, ForeignPart)
    assert json.loads(audio.payload)["input_audio"] == {"data": "AA", "format": "wav"}
    assert said.messages[2].parts[-1] == ToolCallPart("c", "get", '{"a":1}')
    assert said.messages[3].parts == (ToolResultPart("c", (TextPart("rain"),)),)
    assert said.tools == (Tool("get", None, b'{"type":"object"}', True),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": "x"}, "tools"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_by_name(remote: Any, body: Any, param: str) -> None:
    api, recorder = remote()
    response = api.chat(**body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert not recorder.requests


ANSWER = (
    Delta(reasoning="hm"),
    Delta(text="Let me see."),
    Delta(tool_calls=(ToolCallDelta(0, "c1", "get", ""),)),
    Delta(tool_calls=(ToolCallDelta(0, "", "", '{"a"'),)),
    Delta(tool_calls=(ToolCallDelta(0, "", "", ":1}"), ToolCallDelta(1, "c2", "put", "{}"))),
    Delta(finish=FinishReason.TOOL_CALLS, usage=USAGE),
)


def test_tool_calls_and_thoughts_are_in_the_whole_answer(remote: Any) -> None:
    api, _ = remote(*ANSWER)
    reply = api.chat(tools=[TOOL]).json()
    message = reply["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Let me see.", "hm")
    assert message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "put", "arguments": "{}"}},
    ]
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


def test_tool_calls_and_thoughts_are_streamed_in_pieces(remote: Any) -> None:
    api, recorder = remote(*ANSWER)
    chunks = events(api.chat(tools=[TOOL], stream=True))[:-1]
    assert recorder.requests[0].given.wants_stream
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "reasoning_content": "hm"}
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", [])]
    assert pieces[0] == {"index": 0, "id": "c1", "type": "function", "function": {"name": "get", "arguments": ""}}
    assert "".join(p["function"]["arguments"] for p in pieces if p["index"] == 0) == '{"a":1}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_an_estimated_usage_says_so(remote: Any) -> None:
    estimate = Usage(prompt_tokens=1, completion_tokens=1, is_estimate=True)
    api, _ = remote(Delta(text="x", finish=FinishReason.STOP, usage=estimate))
    assert api.chat().json()["usage"]["is_estimate"] is True


def test_completions_go_out_as_texts_or_tokens(remote: Any) -> None:
    api, recorder = remote()
    assert api.post("/v1/completions", prompt=["a", "b"], echo=True).json()["choices"][1]["text"] == "ok"
    assert [request.source for request in recorder.requests] == ["a", "b"]
    assert recorder.requests[0].given.extras == (("echo", b"true"),)
    assert api.post("/v1/completions", prompt=[5, 6]).status_code == 200
    assert (recorder.requests[2].source, recorder.requests[2].prompt) == (None, (5, 6))


def test_tokens_of_a_remote_model_are_not_known_here(remote: Any) -> None:
    api, _ = remote()
    response = api.post("/tokenize", prompt="x")
    assert response.status_code == 400
    assert "remote" in response.json()["error"]["message"]


def test_a_remote_model_is_listed_with_the_names_of_its_upstreams(remote: Any) -> None:
    api, _ = remote()
    card = api.call("GET", "/v1/models").json()["data"][0]
    assert (card["id"], card["root"], card["max_model_len"]) == ("far", "upstream:u", None)


def test_a_local_model_is_the_default_before_remote_ones(make_api: Any) -> None:
    api = make_api()
    local = next(iter(api.app._state.models))
    far = RemoteModel(name="far", root="upstream:u", upstream=api.upstream, created=7)
    loading: list[str | None] = ["half of it"]
    models = Models([far], loading=lambda: loading[0])
    assert make_api(models=models).chat().status_code == 503
    assert make_api(models=models).chat(model="far").status_code == 200
    models.publish(local)
    loading[0] = None
    assert [model.name for model in models] == ["echo", "far"]
    assert models.find(None).name == "echo"
