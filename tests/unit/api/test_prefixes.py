"""POST /v1/prefixes: which tokens are asked for, for how long, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.delta import Delta, FinishReason


def asked(api: Any) -> str:
    """The prompt of the last request, as text, without its BOS."""
    return bytes(token for token in api.upstream.requests[-1].prompt if token < 256).decode()


def test_a_text_becomes_a_request_without_output_that_asks_to_be_kept(make_api: Any) -> None:
    api = make_api()
    reply = api.post("/v1/prefixes", prompt="once upon", ttl_s=60)
    (request,) = api.upstream.requests
    assert asked(api) == "once upon"
    assert (request.pin_s, request.stop.max_tokens) == (60.0, 0)
    assert reply.json() == {
        "model": "echo", "prompt_tokens": 10, "cached_tokens": 0, "ttl_s": 60.0, "object": "prefix",
    }  # fmt: skip


def test_an_hour_is_the_default_and_token_ids_are_taken_as_they_are(make_api: Any) -> None:
    api = make_api()
    assert api.post("/v1/prefixes", prompt=[72, 105]).json()["ttl_s"] == 3600.0
    assert asked(api) == "Hi"


def test_a_system_message_stands_for_all_conversations_that_begin_with_it(make_api: Any) -> None:
    api = make_api()
    api.post("/v1/prefixes", messages=[{"role": "system", "content": "be brief"}])
    assert asked(api) == "s:be brief\nu:"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    api.post("/v1/prefixes", messages=turns)
    assert asked(api) == "u:hi\na:yes\n"


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "prompt", "either 'prompt' or 'messages'"),
        ({"prompt": "a", "messages": []}, "prompt", "either 'prompt' or 'messages'"),
        ({"prompt": []}, "prompt", "no tokens"),
        ({"prompt": "a", "ttl_s": 0}, "ttl_s", "above 0"),
        ({"prompt": "a", "ttl_s": 1e9}, "ttl_s", "at most 604,800"),
        ({"prompt": [999]}, "prompt", "outside the vocabulary"),
        ({"prompt": "x" * 64}, None, "accepts 63"),
        ({"prompt": "a", "namespace": "other"}, None, "namespace"),
        ({"messages": []}, "messages", "empty"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(make_api: Any, body: Any, param: str | None, said: str) -> None:
    reply = make_api().post("/v1/prefixes", **body)
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]
    assert param is None or reply.json()["error"]["param"] == param


class Cancelled:
    """An engine that was told to end the request."""

    async def generate(self, request: Any) -> Any:
        yield Delta(finish=FinishReason.ABORT)


def test_a_prefix_that_was_cancelled_is_told_as_that(make_api: Any) -> None:
    reply = make_api(Cancelled()).post("/v1/prefixes", prompt="a")
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "request_cancelled")
