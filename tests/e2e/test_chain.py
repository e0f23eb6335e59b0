"""Two Headrace processes in a chain: the first has no model, the second computes; official SDKs at the front."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.e2e.conftest import SMALL, Server, running, until

KEY = "sk-front-to-back-0123456789"


@pytest.fixture(scope="module")
def chain(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """(front, back): the back holds `tiny` and wants a key, the front serves it as `far`."""
    directory = tmp_path_factory.mktemp("chain")
    (directory / "key").write_text(KEY + "\n")
    with running(f"file:{tiny_path}", "--backend", "reference", "--api-key", KEY, *SMALL, has_brake=True) as back:
        config = directory / "front.toml"
        config.write_text(
            f"""
            [upstreams.back]
            url = "{back.url}"
            profile = "headrace"
            models = {{ far = "tiny" }}
            api_key = "file:{directory / "key"}"
            [upstreams.back-by-messages]
            url = "{back.url}"
            profile = "anthropic"
            models = {{ far-by-messages = "tiny" }}
            api_key = "file:{directory / "key"}"
            """
        )
        with running("--config", str(config)) as front:
            yield front, back
            assert (front.stop(), back.stop()) == (0, 0), front.log + back.log
    assert KEY not in front.log + back.log


@pytest.fixture
def client(chain: tuple[Server, Server]) -> openai.OpenAI:
    return chain[0].openai()


GREEDY = {"temperature": 0}
MESSAGES: Any = [{"role": "user", "content": "Say something."}]


def test_answers_are_those_of_the_model_behind(chain: tuple[Server, Server], client: openai.OpenAI) -> None:
    front = client.chat.completions.create(model="far", messages=MESSAGES, max_tokens=8, temperature=0)
    with openai.OpenAI(base_url=chain[1].url + "/v1", api_key=KEY) as direct:
        back = direct.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, temperature=0)
    assert front.choices[0].message.content == back.choices[0].message.content
    assert front.usage is not None
    assert back.usage is not None
    assert front.usage.completion_tokens == back.usage.completion_tokens == 8
    assert front.usage.prompt_tokens == back.usage.prompt_tokens
    assert (front.model, back.model) == ("far", "tiny")


def test_streams_pass_through_with_usage_and_logprobs(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="far", messages=MESSAGES, max_tokens=8, temperature=0)
    stream = client.chat.completions.create(
        model="far", messages=MESSAGES, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    scored = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices and chunk.choices[0].logprobs]
    tokens = [token for logprobs in scored for token in logprobs.content or []]
    assert len(tokens) == 8
    assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_prompts_of_tokens_pass_through(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="far", prompt=[256, 72, 105], max_tokens=4, temperature=0)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 4)


def test_a_fault_of_the_request_is_told_in_the_words_of_the_server_behind(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(openai.BadRequestError, match="'tools' is not supported"):
        client.chat.completions.create(model="far", messages=MESSAGES, tools=[tool])


def test_both_wires_lead_to_the_same_answer_over_both_kinds_of_upstream(
    chain: tuple[Server, Server], client: openai.OpenAI
) -> None:
    said: set[str | None] = set()
    with anthropic.Anthropic(base_url=chain[0].url, api_key="none", max_retries=0) as messages:
        for model in ("far", "far-by-messages"):
            message = messages.messages.create(model=model, messages=MESSAGES, max_tokens=8, extra_body=GREEDY)
            block = message.content[0]
            assert block.type == "text"
            with messages.messages.stream(model=model, messages=MESSAGES, max_tokens=8, extra_body=GREEDY) as stream:
                streamed = stream.get_final_message()
            assert streamed.content[0].to_dict()["text"] == block.text
            assert streamed.usage.output_tokens == message.usage.output_tokens == 8
            counted = messages.messages.count_tokens(model=model, messages=MESSAGES).input_tokens
            reply = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, temperature=0)
            assert reply.usage is not None
            assert counted == reply.usage.prompt_tokens
            said |= {block.text, reply.choices[0].message.content}
    assert len(said) == 1


def test_a_client_that_leaves_ends_the_work_two_servers_behind(
    chain: tuple[Server, Server], client: openai.OpenAI
) -> None:
    front, back = chain
    headers = {"authorization": f"Bearer {KEY}"}
    aborted = re.compile(r'^vllm:request_success_total\{.*finished_reason="abort".*\} 1\.0$', re.M)
    idle = re.compile(r"^vllm:num_requests_running\{.*\} 0\.0$", re.M)

    def has_ended_behind() -> bool:
        told = httpx.get(back.url + "/metrics", headers=headers, timeout=60, trust_env=False).text
        return aborted.search(told) is not None and idle.search(told) is not None

    with back.slowed():
        stream = client.chat.completions.create(
            model="far", messages=MESSAGES, stream=True, max_tokens=480, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
        until(has_ended_behind)

    def status() -> Any:
        return front.get("/health/upstreams").json()["upstreams"][0]

    until(lambda: status()["in_flight"] == 0)
    assert (status()["outcomes"]["aborted"], status()["breaker"]) == (1, "closed")


def test_the_state_of_upstreams_is_in_the_metrics(chain: tuple[Server, Server]) -> None:
    text = chain[0].get("/metrics").text
    assert 'headrace_upstream_breaker{state="closed",upstream="back"} 1.0' in text
    assert 'headrace_upstream_attempts_total{outcome="ok",upstream="back"}' in text
    assert 'vllm:time_to_first_token_seconds_count{model_name="far"}' in text


def test_an_answer_goes_on_at_another_replica_when_one_is_killed(tiny_path: Path, tmp_path: Path) -> None:
    letters = {str(token_id): 100 for token_id in range(97, 123)}  # bytes of a random model that are always text
    asked: Any = {"messages": MESSAGES, "max_tokens": 400, "temperature": 0, "logit_bias": letters}
    with (
        running(f"file:{tiny_path}", "--backend", "reference", *SMALL, has_brake=True) as one,
        running(f"file:{tiny_path}", "--backend", "reference", *SMALL, has_brake=True) as two,
    ):
        config = tmp_path / "front.toml"
        config.write_text(
            "\n".join(
                f'[upstreams.{name}]\nurl = "{server.url}"\nprofile = "headrace"\nmodels = {{ far = "tiny" }}'
                for name, server in (("one", one), ("two", two))
            )
        )
        with running("--config", str(config)) as front:
            direct = two.openai().chat.completions.create(model="tiny", **asked)
            with one.slowed(), two.slowed():
                stream = front.openai().chat.completions.create(
                    model="far", stream=True, stream_options={"include_usage": True}, **asked
                )
                chunks = iter(stream)
                text = next(chunks).choices[0].delta.content or ""
                states = front.get("/health/upstreams").json()["upstreams"]
                (victim,) = (server for state, server in zip(states, (one, two), strict=True) if state["in_flight"])
                victim.process.kill()
            usage = None
            for chunk in chunks:
                usage = chunk.usage or usage
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
            assert text == direct.choices[0].message.content
            assert usage is not None
            assert usage.completion_tokens == 400
            states = front.get("/health/upstreams").json()["upstreams"]
            assert sum(state["resumed"] for state in states) == 1
