"""The Anthropic wire, over a model of this process and over a remote one."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from headrace.api import Models, RemoteModel
from headrace.core.conversation import (
    CacheHint,
    ForeignPart,
    ForeignTool,
    ImagePart,
    ReasoningPart,
    TextPart,
    Tool,
    ToolCallPart,
    ToolResultPart,
)
from headrace.core.delta import Delta, FinishReason, ToolCallDelta, Usage
from headrace.core.errors import Overloaded
from tests.unit.api.test_chat import Scripted

USAGE = Usage(prompt_tokens=20, completion_tokens=9, cached_tokens=4, cache_write_tokens=6, cache_write_1h_tokens=2)
RESULT = [{"type": "text", "text": "r"}]
TOOL = {"name": "get", "description": "look", "input_schema": {"type": "object"}}


def ask(api: Any, content: Any = "hi", **body: Any) -> httpx.Response:
    messages = [{"role": "user", "content": content}]
    response: httpx.Response = api.post("/v1/messages", **{"max_tokens": 32, "messages": messages, **body})
    return response


def events(response: httpx.Response) -> list[Any]:
    """Parse a stream as strict clients do: the event's name is the type of its data."""
    parsed = []
    for frame in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        payload = json.loads(data.removeprefix("data: "))
        assert name == f"event: {payload['type']}"
        parsed.append(payload)
    return parsed


@pytest.fixture
def remote(make_api: Any) -> Any:
    def make(*deltas: Delta, error: Exception | None = None, **model: Any) -> Any:
        upstream = Scripted(*deltas or (Delta(text="ok", finish=FinishReason.STOP, usage=USAGE),), error=error)
        recorder = make_api(upstream).upstream
        far = RemoteModel(name="far", root="upstream:u", upstream=recorder, created=7, **model)
        return make_api(upstream, models=Models([far])), recorder

    return make


def test_a_local_model_answers_with_blocks_reason_and_usage(api: Any) -> None:
    reply = ask(api, "hi", max_tokens=4).json()
    assert reply["id"].startswith("msg_")
    assert (reply["type"], reply["role"], reply["model"]) == ("message", "assistant", "echo")
    assert reply["content"] == [{"type": "text", "text": "u:h"}]
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("max_tokens", None)
    assert reply["usage"]["input_tokens"] == 8
    assert reply["usage"]["output_tokens"] == 4


def test_a_stream_of_a_local_model_is_its_whole_answer(api: Any) -> None:
    found = events(ask(api, "grüß", stream=True))
    kinds = [event["type"] for event in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(event["delta"]["text"] for event in found if event["type"] == "content_block_delta")
    assert text == ask(api, "grüß").json()["content"][0]["text"]
    assert found[0]["message"]["usage"]["input_tokens"] == len(b"u:gr\xc3\xbc\xc3\x9f\na:") + 1
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_the_callers_stop_sequence_is_told(make_api: Any) -> None:
    stopped = Delta(
        text="u", finish=FinishReason.STOP, stop_match=":", usage=Usage(prompt_tokens=1, completion_tokens=1)
    )
    reply = ask(make_api(Scripted(stopped)), stop_sequences=[":"]).json()
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", ":")


def test_system_and_prefill_go_through_the_template(api: Any) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "so"}]}]
    assert ask(api, system=[{"type": "text", "text": "be"}], messages=messages).status_code == 200
    assert bytes(api.upstream.requests[0].prompt[1:]) == b"s:be\nu:q\na:so"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tools": [TOOL]}, "'tools'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "'thinking'"),
        ({"container": "c"}, "'container'"),
        ({"content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]}, "'image'"),
        ({"content": [{"type": "document", "source": {}}]}, "'document'"),
    ],
)
def test_a_local_model_refuses_what_it_cannot_read_by_name(api: Any, body: Any, said: str) -> None:
    response = ask(api, **body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert said in response.json()["error"]["message"]


def test_hints_and_thoughts_of_before_ask_nothing_of_a_local_model(api: Any) -> None:
    said = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "yes"}]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "r"},
    ]
    assert ask(api, messages=messages, thinking={"type": "disabled"}, metadata={"user_id": "u"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"max_token": 5}, 400, "invalid_request_error", "max_tokens"),
        ({"content": [{"text": "x"}]}, 400, "invalid_request_error", "messages[0].content[0].type"),
        ({"model": "eco"}, 404, "not_found_error", "'echo'"),
        ({"temperature": -1.0}, 400, "invalid_request_error", "temperature"),
    ],
)
def test_errors_have_this_wires_shape(api: Any, body: Any, status: int, kind: str, said: str) -> None:
    response = ask(api, **body)
    reply = response.json()
    assert (response.status_code, reply["type"], reply["error"]["type"]) == (status, "error", kind)
    assert said in reply["error"]["message"]
    assert reply["request_id"] == response.headers["x-request-id"]


def test_an_error_inside_a_stream_is_an_error_event(make_api: Any) -> None:
    api = make_api(Scripted(Delta(text="x"), Delta(finish=FinishReason.ERROR, error="boom")))
    found = events(ask(api, stream=True))
    assert found[-1]["type"] == "error"
    assert found[-1]["error"] == {"type": "api_error", "message": "boom"}
    assert "message_stop" not in [event["type"] for event in found]


def test_an_error_before_the_first_delta_has_its_own_status(make_api: Any) -> None:
    response = ask(make_api(Scripted(error=Overloaded("full", retry_after_s=3.0))), stream=True)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_the_key_comes_in_this_wires_header(make_api: Any) -> None:
    from headrace.api import SharedKey

    api = make_api(gatekeeper=SharedKey("k"))
    body = {"max_tokens": 4, "messages": [{"role": "user", "content": "x"}]}
    assert api.call("POST", "/v1/messages", json=body, headers={"x-api-key": "k"}).status_code == 200
    refused = api.call("POST", "/v1/messages", json=body, headers={"x-api-key": "no"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")


def test_tokens_of_a_local_model_are_counted_with_the_template(api: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "system": "be"}
    assert api.post("/v1/messages/count_tokens", **body).json() == {"input_tokens": len("s:be\nu:hi\na:") + 1}


def test_tokens_of_a_remote_model_are_counted_there(remote: Any) -> None:
    async def count(request: Any) -> int:
        return len(request.source.messages[0].parts)

    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert remote(count_tokens=count)[0].post("/v1/messages/count_tokens", **body).json() == {"input_tokens": 1}
    assert remote()[0].post("/v1/messages/count_tokens", **body).status_code == 400


def test_words_for_a_remote_model_keep_every_part(remote: Any) -> None:
    api, recorder = remote()
    hint = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see", **hint},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
                {"type": "document", "source": {"type": "url", "url": "https://x/d.pdf"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "c1", "name": "get", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "content": [{"type": "text", "text": "r"}],
                    "is_error": True,
                }
            ],
        },
    ]
    search = {"type": "web_search_20250305", "name": "web_search"}
    response = api.call(
        "POST",
        "/v1/messages",
        headers={"anthropic-beta": "b1,b2"},
        json={
            "model": "far", "max_tokens": 9, "messages": messages, "system": "be", "tools": [{**TOOL, **hint}, search],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "metadata": {"user_id": "me"},
            "thinking": {"type": "enabled", "budget_tokens": 2048}, "stop_sequences": ["x"], "top_k": 3,
            "cache_control": {"type": "ephemeral"}, "container": "c", "service_tier": "auto",
        },
    )  # fmt: skip
    assert response.status_code == 200, response.text
    request = recorder.requests[0]
    said, given = request.source, request.given
    assert [message.role for message in said.messages] == ["system", "user", "assistant", "user"]
    assert said.messages[1].parts[0] == TextPart("see", CacheHint("1h"))
    assert said.messages[1].parts[1] == ImagePart("data:image/png;base64,QUJD")
    assert isinstance(said.messages[1].parts[2], ForeignPart)
    assert said.messages[2].parts == (ReasoningPart("hm", "s"), ToolCallPart("c1", "get", '{"a":1}'))
    assert said.messages[3].parts == (ToolResultPart("c1", (TextPart("r"),), is_error=True),)
    assert isinstance(said.tools[0], Tool)
    assert said.tools[0].cache == CacheHint("1h")
    assert isinstance(said.tools[1], ForeignTool)
    assert (said.tool_choice.mode, said.parallel_tool_calls) == ("required", False)
    assert said.reasoning.budget_tokens == 2048
    assert (given.wire, given.max_tokens, given.stop, given.top_k) == ("anthropic", 9, ("x",), 3)
    assert given.extras == (("container", b'"c"'),)
    assert dict(given.labels) == {"user": b'"me"', "cache_control": b'{"type":"ephemeral"}'}
    assert given.headers == (("anthropic-beta", "b1,b2"),)


ANSWER = (
    Delta(reasoning="hm"),
    Delta(signature="sig"),
    Delta(text="Let "),
    Delta(text="me."),
    Delta(tool_calls=(ToolCallDelta(0, "c1", "get", ""),)),
    Delta(tool_calls=(ToolCallDelta(0, "", "", '{"a"'),)),
    Delta(tool_calls=(ToolCallDelta(0, "", "", ":1}"), ToolCallDelta(1, "c2", "put", ""))),
    Delta(foreign=(ForeignPart("anthropic", "new_kind", b'{"type":"new_kind","x":1}'),)),  # type: ignore[arg-type]
    Delta(finish=FinishReason.TOOL_CALLS, usage=USAGE),
)
CONTENT = [
    {"type": "thinking", "thinking": "hm", "signature": "sig"},
    {"type": "text", "text": "Let me."},
    {"type": "tool_use", "id": "c1", "name": "get", "input": {"a": 1}},
    {"type": "tool_use", "id": "c2", "name": "put", "input": {}},
    {"type": "new_kind", "x": 1},
]


def test_a_whole_answer_has_every_kind_of_block(remote: Any) -> None:
    reply = ask(remote(*ANSWER)[0], tools=[TOOL]).json()
    assert reply["content"] == CONTENT
    assert reply["stop_reason"] == "tool_use"
    assert reply["usage"] == {
        "input_tokens": 10, "output_tokens": 9, "cache_creation_input_tokens": 6, "cache_read_input_tokens": 4,
        "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 2},
    }  # fmt: skip


def test_blocks_of_a_stream_open_grow_and_close_one_after_the_other(remote: Any) -> None:
    found = events(ask(remote(*ANSWER)[0], tools=[TOOL], stream=True))
    opened: int | None = None
    blocks: list[Any] = []
    for event in found:
        if event["type"] == "content_block_start":
            assert opened is None
            opened = event["index"]
            assert opened == len(blocks)
            blocks.append([event["content_block"]])
        elif event["type"] == "content_block_delta":
            assert event["index"] == opened
            blocks[-1].append(event["delta"])
        elif event["type"] == "content_block_stop":
            assert event["index"] == opened
            opened = None
    assert opened is None
    assert [block[0]["type"] for block in blocks] == [block["type"] for block in CONTENT]
    assert blocks[0][0] == {"type": "thinking", "thinking": "", "signature": ""}
    assert "".join(piece["partial_json"] for piece in blocks[2][1:]) == '{"a":1}'
    assert blocks[2][0]["input"] == {}
    assert found[-2]["usage"]["cache_read_input_tokens"] == 4
