"""What the server itself cuts off, by a swap, a drain or an engine that has died, is told as that on every wire."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from headrace.core.cuts import Cut
from headrace.core.delta import Delta, FinishReason, Usage
from tests.unit.api.asgi import Connection

TEXT = {"prompt": "hello", "max_tokens": 4}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
CALLS = [
    pytest.param("/v1/prefixes", {"prompt": "hello"}, id="prefix"),
    pytest.param("/v1/completions", TEXT, id="completion"),
    pytest.param("/v1/completions", TEXT | {"prompt": ["a", "b"]}, id="several prompts"),
    pytest.param("/v1/completions", TEXT | {"echo": True, "logprobs": 1, "max_tokens": 0}, id="scores"),
    pytest.param("/v1/completions", TEXT | {"n": 2}, id="n"),
    pytest.param("/v1/completions", TEXT | {"use_beam_search": True, "n": 2}, id="beams"),
    pytest.param("/v1/chat/completions", CHAT, id="chat"),
    pytest.param("/v1/chat/completions", CHAT | {"n": 2}, id="chat n"),
    pytest.param("/v1/messages", CHAT, id="message"),
]
CODES = {Cut.SWAP: ("weights_swapped", "1"), Cut.DRAIN: ("server_draining", "5"), Cut.DEAD: ("engine_dead", "5")}


class CutOff:
    """An engine that says a word, if told to, and is cut off."""

    def __init__(self, cut: Cut, *, speaks: bool = False) -> None:
        self.cut = cut
        self.speaks = speaks

    async def generate(self, request: Any) -> Any:
        if self.speaks:
            yield Delta(text="a word", token_ids=(97,))
        for index in range(request.n):
            usage = Usage(prompt_tokens=1, completion_tokens=0) if index == request.n - 1 else None
            yield Delta(index=index, finish=FinishReason.ERROR, error="it was cut off", cut=self.cut, usage=usage)


def code_of(path: str, error: Any) -> str | None:
    return error["error"]["code"] if "messages" not in path else None  # that wire has kinds, not codes


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize(("path", "body"), CALLS)
@pytest.mark.parametrize("speaks", [False, True])
def test_a_whole_answer_that_was_cut_off_is_a_503_that_says_when_to_try_again(
    make_api: Any, cut: Cut, path: str, body: Any, speaks: bool
) -> None:
    reply = make_api(CutOff(cut, speaks=speaks)).post(path, **body)
    code, retry_after = CODES[cut]
    assert (reply.status_code, reply.headers["retry-after"]) == (503, retry_after)
    assert reply.json()["error"]["message"] == "it was cut off"
    assert code_of(path, reply.json()) in (None, code)


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize(
    ("path", "body"), [pytest.param(*call.values, id=call.id) for call in CALLS if call.id not in ("prefix", "beams")]
)
def test_a_stream_is_refused_before_its_first_event_and_ends_in_an_error_after_it(
    make_api: Any, cut: Cut, path: str, body: Any
) -> None:
    code, retry_after = CODES[cut]
    refused = make_api(CutOff(cut)).post(path, **body, stream=True)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, retry_after)
    broken = make_api(CutOff(cut, speaks=True)).post(path, **body, stream=True)
    assert broken.status_code == 200
    data = [line.removeprefix("data: ") for line in broken.text.splitlines() if line.startswith("data: ")]
    assert json.loads(data[-1])["error"]["message"] == "it was cut off"
    assert code_of(path, json.loads(data[-1])) in (None, code)
    assert "[DONE]" not in broken.text


@pytest.mark.parametrize("cut", list(Cut))
def test_a_resumed_stream_and_a_repeated_call_are_told_the_same(make_api: Any, cut: Cut) -> None:
    async def main() -> None:
        api = make_api(CutOff(cut, speaks=True))
        headers = {"x-resume-grace": "5", "x-request-id": "mine", "idempotency-key": "k"}
        for num_asked in (1, 2):  # the first one's failure frees the key
            first = await Connection(api.app).open("POST", "/v1/completions", TEXT | {"stream": True}, headers).ended()
            assert CODES[cut][0] in first.body.decode()
            assert len(api.upstream.requests) == num_asked
            headers["x-request-id"] = "another"
        again = await Connection(api.app).open("GET", "/v1/requests/mine/events", None, {"last-event-id": "1"}).ended()
        assert (again.status, json.loads(again.body)["error"]["code"]) == (503, CODES[cut][0])

    asyncio.run(main())
