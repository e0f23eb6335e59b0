"""The completions endpoint: prompts of every shape, echo and its logprobs, many prompts at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.core.delta import Delta, FinishReason, PositionLogprobs, TokenLogprob, Usage


def stream_of(response: Any) -> list[Any]:
    payloads = [block.removeprefix("data: ") for block in response.text.removesuffix("\n\n").split("\n\n")]
    assert payloads.pop() == "[DONE]"
    return [json.loads(payload) for payload in payloads]


class Scoring:
    """Answers with one token `!`, and scores every prompt token when asked."""

    async def generate(self, request: Any) -> Any:
        scored: tuple[PositionLogprobs | None, ...] = ()
        if request.prompt_logprobs is not None:
            tokens = [TokenLogprob(t, -t / 100, chr(t)) for t in request.prompt[1:]]
            scored = (None, *(PositionLogprobs(token, (TokenLogprob(65, -0.1, "A"), token)) for token in tokens))
        is_empty = request.stop.max_tokens == 0
        bang = TokenLogprob(33, -0.25, "!", b"!")
        logprobs = (PositionLogprobs(bang, (bang,)),) if request.sampling.logprobs is not None and not is_empty else ()
        for index in range(request.n):
            yield Delta(
                index=index,
                text="" if is_empty else "!",
                token_ids=() if is_empty else (33,),
                logprobs=logprobs,
                prompt_logprobs=scored if index == 0 else (),
                finish=FinishReason.LENGTH,
                usage=Usage(prompt_tokens=len(request.prompt), completion_tokens=(not is_empty) * request.n),
            )


def test_text_prompts_get_the_begin_token(api: Any) -> None:
    reply = api.post("/v1/completions", prompt="abc").json()
    assert api.upstream.requests[0].prompt == (256, 97, 98, 99)
    assert reply["object"] == "text_completion"
    assert reply["choices"][0]["text"] == "abc"


def test_sixteen_tokens_are_the_default(api: Any) -> None:
    api.post("/v1/completions", prompt="x" * 40)
    assert api.upstream.requests[0].stop.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "token_prompts"),
    [
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
        (["a", "b"], [(256, 97), (256, 98)]),
    ],
)
def test_prompts_come_in_every_shape(api: Any, prompt: Any, token_prompts: Any) -> None:
    reply = api.post("/v1/completions", prompt=prompt).json()
    assert [request.prompt for request in api.upstream.requests] == token_prompts
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(token_prompts)))
    assert reply["usage"]["prompt_tokens"] == sum(map(len, token_prompts))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [([], "0 prompts"), ([97, "a"], "mixes"), ([[]], "no tokens"), ([999], "999"), ([[97], [-1]], "-1")],
)
def test_bad_prompts_are_named(api: Any, prompt: Any, said: str) -> None:
    response = api.post("/v1/completions", prompt=prompt)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "prompt"


def test_choices_are_numbered_over_prompts_and_n(api: Any) -> None:
    body = {"prompt": ["ab", "cd"], "n": 2}
    texts = {choice["index"]: choice["text"] for choice in api.post("/v1/completions", **body).json()["choices"]}
    assert texts == {0: "ab", 1: "ab", 2: "cd", 3: "cd"}
    streamed = dict.fromkeys(range(4), "")
    for chunk in stream_of(api.post("/v1/completions", stream=True, **body)):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == texts


def test_stream_ends_with_the_usage_of_all_prompts(api: Any) -> None:
    options = {"include_usage": True}
    chunks = stream_of(api.post("/v1/completions", prompt=["ab", "cde"], stream=True, stream_options=options))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize("stream", [False, True])
def test_echo_scores_the_prompt_and_then_the_answer(make_api: Any, stream: bool) -> None:
    api = make_api(Scoring())
    response = api.post("/v1/completions", prompt=[97, 98], echo=True, logprobs=1, max_tokens=1, stream=stream)
    reply = stream_of(response)[0] if stream else response.json()
    choice = reply["choices"][0]
    assert choice["text"] == "ab!"
    assert choice["logprobs"]["tokens"] == ["a", "b", "!"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.98, -0.25]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert choice["logprobs"]["top_logprobs"] == [None, {"A": -0.1, "b": -0.98}, {"!": -0.25}]


def test_echo_with_no_new_tokens_scores_the_prompt_alone(make_api: Any) -> None:
    reply = make_api(Scoring()).post("/v1/completions", prompt="ab", echo=True, logprobs=0, max_tokens=0).json()
    assert reply["choices"][0]["text"] == "ab"
    assert reply["choices"][0]["logprobs"]["tokens"] == ["<bos>", "a", "b"]
    assert reply["choices"][0]["logprobs"]["top_logprobs"] is None
    assert reply["usage"]["completion_tokens"] == 0


def test_every_echoed_choice_is_scored(make_api: Any) -> None:
    reply = make_api(Scoring()).post("/v1/completions", prompt=[97, 98], echo=True, logprobs=1, n=2).json()
    assert [choice["logprobs"]["token_logprobs"][1] for choice in reply["choices"]] == [-0.98, -0.98]


def test_prompt_logprobs_have_rank_and_text(make_api: Any) -> None:
    reply = make_api(Scoring()).post("/v1/completions", prompt=[97, 98], prompt_logprobs=2).json()
    first, second = reply["choices"][0]["prompt_logprobs"]
    assert first is None
    assert second["98"] == {"logprob": -0.98, "rank": 2, "decoded_token": "b"}


def test_no_tokens_without_echo_is_refused(api: Any) -> None:
    assert api.post("/v1/completions", prompt="a", max_tokens=0).json()["error"]["param"] == "max_tokens"


def test_a_suffix_is_refused(api: Any) -> None:
    error = api.post("/v1/completions", prompt="a", suffix="b").json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "suffix")
