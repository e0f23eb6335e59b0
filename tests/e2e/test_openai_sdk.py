"""The official OpenAI SDK against a real server process."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.e2e.conftest import until

QUESTION: Any = [{"role": "user", "content": "Tell me."}]
GREEDY: Any = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 24}


def content(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_models_are_listed(tiny: Any) -> None:
    (card,) = tiny.openai().models.list().data
    assert card.id == "tiny"
    assert tiny.openai().models.retrieve("tiny").id == "tiny"


def test_streamed_chat_equals_whole_chat(tiny: Any) -> None:
    client = tiny.openai()
    whole = client.chat.completions.create(**GREEDY)
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage.completion_tokens <= 24
    assert content(client.chat.completions.create(stream=True, **GREEDY)) == whole.choices[0].message.content


def test_sixteen_streams_at_once_say_what_they_say_alone(tiny: Any) -> None:
    prompts = [f"Prompt number {i} " * (1 + i % 5) for i in range(16)]
    options: Any = {"model": "tiny", "temperature": 0, "max_tokens": 20, "extra_body": {"ignore_eos": True}}
    client = tiny.openai()
    alone = [client.completions.create(prompt=prompt, **options).choices[0].text for prompt in prompts]

    async def one(async_client: AsyncOpenAI, prompt: str) -> str:
        stream = await async_client.completions.create(prompt=prompt, stream=True, **options)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_at_once() -> list[str]:
        async with AsyncOpenAI(base_url=tiny.url + "/v1", api_key="none", max_retries=0) as async_client:
            return list(await asyncio.gather(*(one(async_client, prompt) for prompt in prompts)))

    assert asyncio.run(all_at_once()) == alone


def test_windows_that_requests_ask_for_stay_theirs_and_impossible_ones_are_refused(tiny: Any) -> None:
    client = tiny.openai()
    options: Any = {"model": "tiny", "prompt": "water runs to the wheel " * 3, "max_tokens": 20, "seed": 5}
    plain = client.completions.create(**options).choices[0].text
    window = {"attention_window": 9, "attention_sinks": 2}
    windowed = client.completions.create(**options, extra_body=window).choices[0].text
    assert windowed != plain
    assert client.completions.create(**options).choices[0].text == plain
    assert client.completions.create(**options, extra_body=window).choices[0].text == windowed
    for wrong, field, said in [
        ({"attention_window": 0}, "attention_window", "attention_window is 0; it must be from 1 to "),
        ({"attention_window": 10**6}, "attention_window", "attention_window is 1,000,000; it must be from 1 to "),
        ({"attention_sinks": 4}, "attention_sinks", "give attention_window too"),
        ({**window, "use_beam_search": True, "best_of": 2}, "attention_window", "leave attention_window"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**options, extra_body=wrong)
        assert (refused.value.param, said in refused.value.message) == (field, True), refused.value.message


def test_a_disconnect_frees_the_blocks(tiny: Any) -> None:
    aborted = 'vllm:request_success_total{finished_reason="abort",model_name="tiny"} 1.0'
    with tiny.slowed():
        stream = tiny.openai().completions.create(
            model="tiny", prompt="go on", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        assert tiny.metric("vllm:kv_cache_usage_perc") > 0
        stream.close()
        until(lambda: tiny.metric("vllm:kv_cache_usage_perc") == 0)
    assert tiny.metric("vllm:num_requests_running") == 0
    assert aborted in tiny.get("/metrics").text


def test_choices_with_seeds_can_be_drawn_again(tiny: Any) -> None:
    options: Any = {"model": "tiny", "messages": QUESTION, "n": 2, "max_tokens": 16, "temperature": 1.5}
    first, again, other = (
        [choice.message.content for choice in tiny.openai().chat.completions.create(seed=seed, **options).choices]
        for seed in (1, 1, 2)
    )
    assert len(set(first)) == 2
    assert first == again
    assert first != other


def test_logprobs_name_the_sampled_and_the_likeliest_tokens(tiny: Any) -> None:
    reply = tiny.openai().chat.completions.create(logprobs=True, top_logprobs=3, **GREEDY)
    tokens = reply.choices[0].logprobs.content
    assert len(tokens) == reply.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)  # greedy takes the likeliest


def test_a_stop_string_ends_the_answer_before_it(tiny: Any) -> None:
    client = tiny.openai()
    options: Any = {"model": "tiny", "prompt": "abc", "temperature": 0, "max_tokens": 24}
    text = client.completions.create(extra_body={"ignore_eos": True}, **options).choices[0].text
    stop = text[5:8]
    stopped = client.completions.create(stop=[stop], extra_body={"ignore_eos": True}, **options)
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == text[: text.index(stop)]
    streamed = client.completions.create(stop=[stop], stream=True, extra_body={"ignore_eos": True}, **options)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text[: text.index(stop)]


def test_token_ids_are_a_prompt_like_any_other(tiny: Any) -> None:
    ids = tiny.post("/tokenize", prompt="same").json()["tokens"]
    options: Any = {"model": "tiny", "temperature": 0, "max_tokens": 12}
    client = tiny.openai()
    by_text = client.completions.create(prompt="same", **options)
    by_ids = client.completions.create(prompt=[ids, ids], **options)
    assert [choice.text for choice in by_ids.choices] == [by_text.choices[0].text] * 2


def test_usage_comes_last_and_without_choices(tiny: Any) -> None:
    *chunks, last = tiny.openai().chat.completions.create(stream=True, stream_options={"include_usage": True}, **GREEDY)
    assert last.choices == []
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_echo_scores_the_prompt_for_evaluation_harnesses(tiny: Any) -> None:
    reply = tiny.openai().completions.create(model="tiny", prompt="score me", echo=True, logprobs=1, max_tokens=1)
    logprobs = reply.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert len(logprobs.tokens) == reply.usage.total_tokens


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"model": "tinny"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 0}, openai.BadRequestError, "invalid_request"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "unsupported_parameter"),
        ({"extra_body": {"top_kk": 1}}, openai.BadRequestError, "unknown_parameter"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, openai.BadRequestError, "prompt_too_long"),
        ({"stream": True, "temperature": 999}, openai.BadRequestError, "invalid_request"),
    ],
)
def test_refusals_arrive_as_the_sdks_errors(tiny: Any, changes: Any, error: Any, code: str) -> None:
    with pytest.raises(error) as caught:
        tiny.openai().chat.completions.create(**{**GREEDY, **changes})
    assert caught.value.code == code


def test_correlation_and_request_ids_come_back(tiny: Any) -> None:
    reply = tiny.openai().chat.completions.with_raw_response.create(
        extra_headers={"x-request-id": "my-id", "x-correlation-id": "trace-7"}, **GREEDY
    )
    assert reply.headers["x-request-id"] == "my-id"
    assert reply.headers["x-correlation-id"] == "trace-7"
