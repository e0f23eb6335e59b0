"""The chat endpoint over an upstream that answers with its prompt."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from headrace.core.caller import Caller
from headrace.core.delta import Delta, FinishReason, PositionLogprobs, TokenLogprob, Usage
from headrace.core.errors import DeadlineUnreachable, Overloaded
from headrace.core.request import WantedReach


def events(response: httpx.Response) -> list[Any]:
    """Parse a stream as strict clients do: one `data:` line per event, JSON or [DONE]."""
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    payloads = [block.removeprefix("data: ") for block in blocks]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


class Scripted:
    """An upstream that yields given deltas, then raises what it was given."""

    def __init__(self, *deltas: Delta, error: Exception | None = None) -> None:
        self.deltas, self.error = deltas, error

    async def generate(self, request: Any) -> Any:
        for delta in self.deltas:
            yield delta
        if self.error is not None:
            raise self.error


def test_answer_has_text_role_finish_and_usage(api: Any) -> None:
    reply = api.chat("hi", max_tokens=4).json()
    choice = reply["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "u:h"}
    assert choice["finish_reason"] == "length"
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "echo"
    assert reply["created"] == 1700000000
    assert reply["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": 4,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_stream_says_the_role_with_the_first_content_and_ends_with_done(api: Any) -> None:
    chunks = events(api.chat("hi", stream=True))
    assert chunks.pop() == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "u"}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"


@pytest.mark.parametrize("n", [1, 3])
def test_streamed_text_equals_the_whole_answer(api: Any, n: int) -> None:
    whole = api.chat("grüß dich", n=n).json()
    texts = [""] * n
    for chunk in events(api.chat("grüß dich", n=n, stream=True))[:-1]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]


def test_usage_chunk_has_no_choices_and_comes_last(api: Any) -> None:
    chunks = events(api.chat("hi", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["completion_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in chunks[:-2])


def test_running_usage_counts_tokens_so_far(api: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(api.chat("hi", stream=True, max_tokens=3, stream_options=options))[:-1]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 2  # the begin token of the echoed prompt has no text and no chunk
    assert counts[-1] == 3


def test_held_back_text_makes_no_chunk(make_api: Any) -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    held = Scripted(
        Delta(token_ids=(1,)), Delta(text="ab", token_ids=(2,), finish=FinishReason.STOP, usage=usage, stop_match="x")
    )
    chunks = events(make_api(held).chat(stream=True))
    assert len(chunks) == 2
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "ab"}
    assert chunks[0]["choices"][0]["stop_reason"] == "x"


def test_error_before_the_first_token_keeps_its_status_in_a_stream(make_api: Any) -> None:
    api = make_api(Scripted(error=Overloaded("queue is full", retry_after_s=2.2)))
    for stream in (False, True):
        response = api.chat(stream=stream)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "3"
        assert response.json()["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    "upstream",
    [
        Scripted(Delta(text="a"), error=Overloaded("gone", retry_after_s=1)),
        Scripted(Delta(text="a"), Delta(finish=FinishReason.ERROR, error="logits are not numbers")),
        Scripted(Delta(text="a"), error=ZeroDivisionError("secret detail")),
    ],
)
def test_error_inside_a_stream_is_one_event_and_no_done(make_api: Any, upstream: Scripted) -> None:
    response = make_api(upstream).chat(stream=True)
    chunks = events(response)
    assert [sorted(chunk) for chunk in chunks[1:]] == [["error"]]
    assert "secret detail" not in response.text


def test_failed_request_is_a_server_error(make_api: Any) -> None:
    response = make_api(Scripted(Delta(finish=FinishReason.ERROR, error="logits are not numbers"))).chat()
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "logits are not numbers"


def test_logprobs_carry_tokens_bytes_and_alternatives(make_api: Any) -> None:
    chosen = TokenLogprob(5, -0.5, "é", b"\xc3\xa9")
    scored = PositionLogprobs(chosen, (chosen, TokenLogprob(6, -2.0, "b", b"b")))
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    api = make_api(Scripted(Delta(text="é", logprobs=(scored,), finish=FinishReason.STOP, usage=usage)))
    content = api.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert content[0]["token"] == "é"
    assert content[0]["bytes"] == [0xC3, 0xA9]
    assert [alternative["logprob"] for alternative in content[0]["top_logprobs"]] == [-0.5, -2.0]
    assert api.upstream.requests[0].sampling.logprobs == 2


def test_parameters_reach_the_request(api: Any) -> None:
    api.chat(
        temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, seed=11, n=2, stop=["x", "yz"], logit_bias={"65": -3},
        presence_penalty=0.25, frequency_penalty=-0.5, repetition_penalty=1.1, min_tokens=2, max_completion_tokens=9,
        stop_token_ids=[10], include_stop_str_in_output=True, skip_special_tokens=False,
    )  # fmt: skip
    request = api.upstream.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 0, 0.1)
    assert (sampling.seed, sampling.logit_bias, sampling.min_tokens) == (11, ((65, -3.0),), 2)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.25, -0.5, 1.1)
    assert request.stop.stop_strings == ("x", "yz")
    assert request.stop.stop_token_ids == {10, 257}
    assert (request.n, request.stop.max_tokens, request.stop.include_stop_text) == (2, 9, True)
    assert request.skip_special_tokens is False


def test_ignore_eos_drops_the_models_end_tokens(api: Any) -> None:
    api.chat(ignore_eos=True)
    assert api.upstream.requests[0].stop.stop_token_ids == frozenset()


def test_max_tokens_defaults_to_the_rest_of_the_context_and_never_exceeds_it(api: Any) -> None:
    api.chat("hi")
    api.chat("hi", max_tokens=1000)
    assert [request.stop.max_tokens for request in api.upstream.requests] == [56, 56]


def test_unseeded_requests_differ(api: Any) -> None:
    api.chat()
    api.chat()
    first, second = api.upstream.requests
    assert first.sampling.seed != second.sampling.seed


def test_nulls_and_neutral_values_are_accepted(api: Any) -> None:
    response = api.chat(
        stop=None, tools=[], tool_choice="auto", response_format={"type": "text"}, store=False, user="u",
        metadata={"a": "b"}, service_tier="auto", functions=None, seed=None, parallel_tool_calls=True,
    )  # fmt: skip
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("audio", {"voice": "x"}),
        ("store", True),
        ("functions", [{"name": "f"}]),
        ("chat_template", "{{ x }}"),
    ],
)
def test_known_but_unserved_parameters_are_named(api: Any, name: str, value: Any) -> None:
    response = api.chat(**{name: value})
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["code"], error["param"]) == ("unsupported_parameter", name)


@pytest.mark.parametrize(
    ("body", "code", "param", "said"),
    [
        ({"temprature": 1}, "unknown_parameter", "temprature", "did you mean 'temperature'"),
        (
            {"stream_options": {"include_usge": True}},
            "unknown_parameter",
            "stream_options.include_usge",
            "include_usage",
        ),
        ({"stream_options": {"include_usage": True}}, "invalid_request", "stream_options", "stream: true"),
        ({"max_tokens": "9"}, "malformed_body", "max_tokens", "Expected"),
        ({"temperature": -1}, "invalid_request", "temperature", "-1"),
        ({"n": 0}, "invalid_request", "n", "between 1 and 128"),
        ({"best_of": 129}, "invalid_request", "best_of", "between 1 and 128"),
        ({"best_of": 2, "n": 3}, "invalid_request", "best_of", "at least n"),
        ({"best_of": 3, "stream": True}, "invalid_request", "stream", "best_of above n cannot be streamed"),
        ({"length_penalty": 2}, "invalid_request", "length_penalty", "needs use_beam_search"),
        ({"early_stopping": True}, "invalid_request", "early_stopping", "needs use_beam_search"),
        ({"use_beam_search": True, "stream": True}, "invalid_request", "stream", "cannot be streamed"),
        ({"use_beam_search": True, "top_p": 0.5}, "invalid_request", "top_p", "no use for it"),
        ({"use_beam_search": True, "logprobs": True}, "invalid_request", "logprobs", "drop one"),
        ({"use_beam_search": True, "length_penalty": 99}, "invalid_request", "length_penalty", "99"),
        ({"top_logprobs": 2}, "invalid_request", "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_request", "top_logprobs", "between 0 and 20"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens", "at least 1"),
        ({"min_tokens": 9, "max_tokens": 3}, "invalid_request", "min_tokens", "9"),
        ({"logit_bias": {"a": 1}}, "invalid_request", "logit_bias", "'a'"),
        ({"logit_bias": {"999": 1}}, "invalid_request", "logit_bias", "999"),
        ({"stop_token_ids": [-1]}, "invalid_request", "stop_token_ids", "-1"),
        ({"messages": []}, "invalid_request", "messages", "empty"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "malformed_body", "messages[0].role", "boss"),
        ({"messages": [{"role": "user"}]}, "invalid_request", "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": "refuse"}]}, "template_failed", None, "alternate"),
        ({"messages": [{"role": "user", "content": "x" * 99}]}, "prompt_too_long", None, "105 tokens"),
    ],
)
def test_bad_input_is_named(api: Any, body: dict[str, Any], code: str, param: str | None, said: str) -> None:
    response = api.chat(**body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]


def test_an_answer_may_be_sent_back_as_any_server_gave_it(api: Any) -> None:
    answer = {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "tool_calls": None}
    turns = [{"role": "user", "content": "q"}, answer, {"role": "user", "content": "r"}]
    assert api.chat(messages=turns).status_code == 200
    refused = api.chat(messages=[*turns[:1], {**answer, "tool_calls": [{"id": "1"}]}]).json()["error"]
    assert (refused["code"], refused["param"]) == ("unsupported_parameter", "messages[1].tool_calls")


def test_obfuscation_of_a_stream_is_refused(api: Any) -> None:
    assert api.chat(stream=True, stream_options={"include_obfuscation": False}).status_code == 200
    error = api.chat(stream=True, stream_options={"include_obfuscation": True}).json()["error"]
    assert error["param"] == "stream_options.include_obfuscation"


def test_text_parts_are_joined_and_images_refused(api: Any) -> None:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    whole = api.chat(messages=[{"role": "user", "content": parts}]).json()
    assert whole["choices"][0]["message"]["content"] == "u:ab\na:"
    parts.append({"type": "image_url", "image_url": {"url": "x"}})
    refusal = api.chat(messages=[{"role": "user", "content": parts}]).json()["error"]
    assert refusal["param"] == "messages[0].content[2].type"


def test_final_message_can_be_continued(api: Any) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "so far"}]
    reply = api.chat(messages=turns, continue_final_message=True).json()
    assert reply["choices"][0]["message"]["content"] == "u:q\na:so far"


def test_template_variables_are_passed_on(api: Any) -> None:
    reply = api.chat("q", chat_template_kwargs={"tail": "!"}).json()
    assert reply["choices"][0]["message"]["content"].endswith("!")


def test_base_model_refuses_chat_with_the_remedy(make_api: Any) -> None:
    response = make_api(template=None).chat()
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "self"])
def test_template_variables_that_the_server_sets_are_refused_by_name(api: Any, name: str) -> None:
    reply = api.chat("q", chat_template_kwargs={name: 1})
    assert reply.status_code == 400
    assert name in reply.json()["error"]["message"]


def test_class_and_deadline_reach_the_engine(api: Any) -> None:
    assert api.chat(priority=-3, service_tier="flex", deadline_ms=1500).status_code == 200
    assert api.chat().status_code == 200
    urgent, ordinary = api.upstream.requests
    assert (urgent.priority, urgent.is_background, urgent.deadline_s) == (-3, True, 1.5)
    assert (ordinary.priority, ordinary.is_background, ordinary.deadline_s) == (0, False, None)


def test_a_window_and_sinks_reach_the_engine_and_null_asks_for_none(api: Any) -> None:
    assert api.chat(attention_window=20, attention_sinks=2).status_code == 200
    assert api.post("/v1/completions", prompt="hi", attention_window=9).status_code == 200
    assert api.chat(attention_window=None, attention_sinks=None).status_code == 200
    both, window, none = (request.reach for request in api.upstream.requests)
    assert both == WantedReach(window=20, num_sinks=2)
    assert window == WantedReach(window=9)
    assert none is None


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("attention_window", "wide", "attention_window"),
        ("priority", 101, "priority is 101; it must be between -100 and 100"),
        ("deadline_ms", 0, "deadline_ms is 0; it must be between 1 and 3600000"),
        ("service_tier", "first class", "service_tier"),
    ],
)
def test_classes_and_deadlines_that_are_none_are_refused(api: Any, field: str, value: Any, said: str) -> None:
    response = api.chat(**{field: value})
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]
    assert not api.upstream.requests


def test_a_request_that_expired_before_its_first_token_is_a_gateway_timeout(make_api: Any) -> None:
    expired = Delta(finish=FinishReason.EXPIRED, error="the deadline passed 3 ms ago, while the request was waiting")
    for stream in (False, True):
        response = make_api(Scripted(expired)).chat(stream=stream)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_expired"
        assert "3 ms ago" in response.json()["error"]["message"]


def test_a_deadline_out_of_reach_is_refused_with_the_time_to_come_back(make_api: Any) -> None:
    refusal = DeadlineUnreachable("the first token is expected in 9 s", retry_after_s=6.2)
    response = make_api(Scripted(error=refusal)).chat(deadline_ms=3000)
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert response.json()["error"]["code"] == "deadline_unreachable"


class KnowsByName:
    """Takes the bearer token for the tenant's name."""

    async def identify(self, path: str, headers: Any) -> Caller:
        return Caller(tenant=headers["authorization"].removeprefix("Bearer "))


def test_a_tenant_takes_its_own_share_and_finds_its_own_prefixes(make_api: Any) -> None:
    api = make_api(gatekeeper=KnowsByName())
    said = [{"role": "user", "content": "hi"}]
    bodies = {
        "/v1/chat/completions": {"messages": said, "user": "somebody else"},
        "/v1/completions": {"prompt": "hi"},
        "/v1/messages": {"model": "echo", "messages": said, "max_tokens": 5},
    }
    for path, fields in bodies.items():
        assert api.call("POST", path, json=fields, headers={"authorization": "Bearer acme"}).status_code == 200
    assert [(request.tenant, request.namespace) for request in api.upstream.requests] == [("acme", "tenant/acme")] * 3


def test_token_ids_are_told_on_request(api: Any) -> None:
    whole = api.chat("hi", return_token_ids=True).json()
    assert whole["prompt_token_ids"] == [256, *b"u:hi\na:"]
    assert whole["choices"][0]["token_ids"] == whole["prompt_token_ids"]
    chunks = events(api.chat("hi", return_token_ids=True, stream=True))[:-1]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [whole["prompt_token_ids"]] + [None] * (
        len(chunks) - 1
    )
    ids = [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]]
    assert ids == whole["choices"][0]["token_ids"]
    assert "token_ids" not in api.chat("hi").json()["choices"][0]
