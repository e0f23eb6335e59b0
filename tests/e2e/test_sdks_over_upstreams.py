"""Official SDKs of both wires over upstreams of both kinds: streams, tools, thoughts, errors, in all four pairings."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.conftest import SMALL, Server, running


class Provider(ThreadingHTTPServer):
    """A server of both wires that thinks, talks and calls a tool, whatever it is asked; it remembers the question."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ProviderHandler)
        self.bodies: list[Any] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class ProviderHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Provider

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        wire = ANTHROPIC if self.path.endswith("/messages") else OPENAI
        if body["model"] == "broken":
            self._send(400, "application/json", json.dumps({"error": {"message": "no such tool here"}}).encode())
        elif body["stream"]:
            self._send(200, "text/event-stream", b"".join(wire["events"]))
        else:
            self._send(200, "application/json", json.dumps(wire["whole"]).encode())

    def _send(self, status: int, kind: str, payload: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _data(*payloads: Any) -> list[bytes]:
    return [f"event: {p.get('type', 'message')}\ndata: {json.dumps(p)}\n\n".encode() for p in payloads]


def _chunk(finish: str | None = None, **delta: Any) -> Any:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
_OPENAI_USAGE = {
    "prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59, "prompt_tokens_details": {"cached_tokens": 30},
}  # fmt: skip
OPENAI: dict[str, Any] = {
    "events": [
        *_data(
            _chunk(role="assistant", reasoning_content="Where? Oslo."),
            _chunk(content="Let me "),
            _chunk(content="look."),
            _chunk(tool_calls=[{**_CALL, "index": 0, "function": {"name": "weather", "arguments": ""}}]),
            _chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"city": '}}]),
            _chunk(tool_calls=[{"index": 0, "function": {"arguments": '"Oslo"}'}}]),
            _chunk(finish="tool_calls"),
            {"choices": [], "usage": _OPENAI_USAGE},
        ),
        b"data: [DONE]\n\n",
    ],
    "whole": {
        "choices": [
            {
                "index": 0,
                "message": {"content": "Let me look.", "reasoning_content": "Where? Oslo.", "tool_calls": [_CALL]},
                "finish_reason": "tool_calls",
            }
        ],
        "usage": _OPENAI_USAGE,
    },
}
_BLOCKS = [
    {"type": "thinking", "thinking": "Where? Oslo.", "signature": "sig"},
    {"type": "text", "text": "Let me look."},
    {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
]
_ANTHROPIC_USAGE = {"input_tokens": 20, "cache_read_input_tokens": 30, "output_tokens": 9}
ANTHROPIC: dict[str, Any] = {
    "events": _data(
        {"type": "message_start", "message": {"content": [], "usage": {**_ANTHROPIC_USAGE, "output_tokens": 1}}},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Where? Oslo."}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Let me "}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "look."}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2, "content_block": {**_BLOCKS[2], "input": {}}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"city": '}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '"Oslo"}'}},
        {"type": "content_block_stop", "index": 2},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ),
    "whole": {"type": "message", "content": _BLOCKS, "stop_reason": "tool_use", "usage": _ANTHROPIC_USAGE},
}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    server = Provider()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def gateway(provider: Provider, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One process with a model of its own, and two upstreams: `o` of the OpenAI wire, `a` of the Anthropic wire."""
    config = tmp_path_factory.mktemp("gateway") / "gateway.toml"
    config.write_text(
        f"""
        models = ["file:{tiny_path}"]
        [upstreams.by-openai]
        url = "{provider.url}"
        profile = "vllm"
        models = {{ o = "big", o-broken = "broken" }}
        [upstreams.by-anthropic]
        url = "{provider.url}"
        profile = "anthropic"
        models = {{ a = "big", a-broken = "broken" }}
        """
    )
    with running("--config", str(config), "--backend", "reference", *SMALL) as server:
        yield server
        assert server.stop() == 0, server.log
    assert "Traceback" not in server.log


@pytest.fixture
def messages_client(gateway: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def chat_client(gateway: Server) -> openai.OpenAI:
    return gateway.openai()


QUESTION: Any = [{"role": "user", "content": "How is the weather in Oslo?"}]
GREEDY = {"temperature": 0}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
MESSAGE_TOOL: Any = {"name": "weather", "description": "look outside", "input_schema": SCHEMA}
CHAT_TOOL: Any = {
    "type": "function", "function": {"name": "weather", "description": "look outside", "parameters": SCHEMA},
}  # fmt: skip


@pytest.mark.parametrize("model", ["o", "a"])
def test_anthropic_sdk_gets_thoughts_text_and_call_streamed_and_whole(
    messages_client: anthropic.Anthropic, provider: Provider, model: str
) -> None:
    with messages_client.messages.stream(
        model=model, max_tokens=4000, messages=QUESTION, tools=[MESSAGE_TOOL], tool_choice={"type": "any"}
    ) as stream:
        assert "".join(stream.text_stream) == "Let me look."
        final = stream.get_final_message()
    whole = messages_client.messages.create(model=model, max_tokens=4000, messages=QUESTION, tools=[MESSAGE_TOOL])
    for message in (final, whole):
        thought, text, call = message.content
        assert (thought.type, text.type, call.type) == ("thinking", "text", "tool_use")
        assert thought.type == "thinking"
        assert thought.thinking == "Where? Oslo."
        assert call.type == "tool_use"
        assert (call.id, call.name, call.input) == ("c1", "weather", {"city": "Oslo"})
        assert message.stop_reason == "tool_use"
        assert (message.usage.input_tokens, message.usage.output_tokens) == (20, 9)
        assert message.usage.cache_read_input_tokens == 30
        if model == "a":
            assert thought.signature == "sig"
    streamed = provider.bodies[-2]
    assert streamed["tool_choice"] == ({"type": "any"} if model == "a" else "required")


@pytest.mark.parametrize("model", ["o", "a"])
def test_openai_sdk_gets_thoughts_text_and_call_streamed_and_whole(chat_client: openai.OpenAI, model: str) -> None:
    stream = chat_client.chat.completions.create(
        model=model, messages=QUESTION, tools=[CHAT_TOOL], stream=True, stream_options={"include_usage": True}
    )
    text = arguments = thoughts = ""
    usage = finish = name = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            thoughts += getattr(choice.delta, "reasoning_content", None) or ""
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                name = call.function.name or name
                arguments += call.function.arguments or ""
    assert (text, thoughts, finish) == ("Let me look.", "Where? Oslo.", "tool_calls")
    assert (name, json.loads(arguments)) == ("weather", {"city": "Oslo"})
    whole = chat_client.chat.completions.create(model=model, messages=QUESTION, tools=[CHAT_TOOL])
    message = whole.choices[0].message
    assert message.tool_calls is not None
    called = message.tool_calls[0]
    assert called.type == "function"
    assert (message.content, called.id, called.function.name) == ("Let me look.", "c1", "weather")
    for counted in (usage, whole.usage):
        assert counted is not None
        assert (counted.prompt_tokens, counted.completion_tokens) == (50, 9)
        assert counted.prompt_tokens_details is not None
        assert counted.prompt_tokens_details.cached_tokens == 30


@pytest.mark.parametrize("model", ["o", "a"])
def test_a_tools_result_goes_back_on_either_wire(
    messages_client: anthropic.Anthropic, chat_client: openai.OpenAI, provider: Provider, model: str
) -> None:
    first = messages_client.messages.create(model=model, max_tokens=99, messages=QUESTION, tools=[MESSAGE_TOOL])
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "rain"}
    history: Any = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    messages_client.messages.create(model=model, max_tokens=99, messages=history, tools=[MESSAGE_TOOL])
    by_messages = provider.bodies[-1]["messages"]
    reply = chat_client.chat.completions.create(model=model, messages=QUESTION, tools=[CHAT_TOOL])
    answer: Any = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    chat_client.chat.completions.create(
        model=model, max_tokens=99, tools=[CHAT_TOOL],
        messages=[*QUESTION, reply.choices[0].message.to_dict(), answer],
    )  # fmt: skip
    by_chat = provider.bodies[-1]["messages"]
    if model == "o":
        arguments = [said[1]["tool_calls"][0]["function"].pop("arguments") for said in (by_messages, by_chat)]
        assert [json.loads(text) for text in arguments] == [{"city": "Oslo"}] * 2
        assert by_messages == by_chat
        assert by_chat[2] == answer
    else:
        assert by_chat[1]["content"] == by_messages[1]["content"][1:]  # this wire has no place for the signature
        assert by_messages[1]["content"][0] == _BLOCKS[0]
        assert by_messages[2] == by_chat[2] == {"role": "user", "content": [result]}


def test_pictures_and_hints_reach_either_kind(messages_client: anthropic.Anthropic, provider: Provider) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "QUJD"}
    content: Any = [
        {"type": "image", "source": source},
        {"type": "text", "text": "What?", "cache_control": {"type": "ephemeral"}},
    ]
    for model in ("o", "a"):
        messages_client.messages.create(model=model, max_tokens=9, messages=[{"role": "user", "content": content}])
    by_openai, by_anthropic = (body["messages"][0]["content"] for body in provider.bodies[-2:])
    assert by_openai[0] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    assert by_anthropic == content


@pytest.mark.parametrize("model", ["o-broken", "a-broken"])
def test_both_sdks_tell_the_upstreams_refusal(
    messages_client: anthropic.Anthropic, chat_client: openai.OpenAI, model: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="no such tool here"):
        messages_client.messages.create(model=model, max_tokens=9, messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="no such tool here"):
        chat_client.chat.completions.create(model=model, messages=QUESTION)


def test_anthropic_sdk_talks_to_a_model_of_this_process(messages_client: anthropic.Anthropic) -> None:
    whole = messages_client.messages.create(model="tiny", max_tokens=8, messages=QUESTION, extra_body=GREEDY)
    with messages_client.messages.stream(model="tiny", max_tokens=8, messages=QUESTION, extra_body=GREEDY) as stream:
        final = stream.get_final_message()
    assert [block.to_dict()["text"] for block in final.content] == [block.to_dict()["text"] for block in whole.content]
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 8)
    counted = messages_client.messages.count_tokens(model="tiny", messages=QUESTION)
    assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


def test_anthropic_sdk_hears_what_is_wrong(messages_client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="tiny"):
        messages_client.messages.create(model="tinny", max_tokens=8, messages=QUESTION)
    with pytest.raises(anthropic.BadRequestError, match="tools"):
        messages_client.messages.create(model="tiny", max_tokens=8, messages=QUESTION, tools=[MESSAGE_TOOL])
