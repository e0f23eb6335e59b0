"""What an answer cost and where limits stand is told on every way out of every wire."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from headrace.core.delta import Delta, FinishReason, Usage
from tests.unit.api.asgi import Connection

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "q"}]})
TEXT = ("/v1/completions", {"prompt": "q"})
MESSAGES = ("/v1/messages", {"model": "echo", "max_tokens": 8, "messages": [{"role": "user", "content": "q"}]})
COST_NANO = 1_250
WIRES = pytest.mark.parametrize(("path", "body"), [CHAT, TEXT, MESSAGES], ids=["chat", "text", "messages"])
WAYS = pytest.mark.parametrize(
    "wish", [{}, {"x-resume-grace": "30"}, {"idempotency-key": "k"}], ids=["plain", "resumable", "keyed"]
)


class Priced:
    """Answers in two deltas as the stage of budgets hands them on, or fails after the first."""

    def __init__(self, *, fails: bool = False) -> None:
        self._fails = fails

    async def generate(self, request: Any) -> Any:
        yield Delta(text="a", token_ids=(1,), headers=(("x-ratelimit-remaining-requests", "7"),))
        usage = Usage(prompt_tokens=1, completion_tokens=2, cost_nano=COST_NANO)
        finish, error = (FinishReason.EXPIRED, "too late") if self._fails else (FinishReason.LENGTH, "")
        yield Delta(text="b", token_ids=(2,), finish=finish, error=error, usage=usage)


def ask(app: Any, path: str, body: dict[str, Any], wish: dict[str, str], num_times: int = 1) -> list[Connection]:
    async def main() -> list[Connection]:
        return [await Connection(app).open("POST", path, body, wish).ended() for _ in range(num_times)]

    return asyncio.run(main())


def usages(connection: Connection) -> list[dict[str, Any]]:
    frames = [
        line.removeprefix("data: ") for line in connection.body.decode().splitlines() if line.startswith("data: {")
    ]
    return [found for frame in frames if (found := json.loads(frame).get("usage"))]


@WIRES
@WAYS
def test_a_whole_answer_tells_its_cost_in_its_usage_and_its_headers(
    make_api: Any, path: str, body: dict[str, Any], wish: dict[str, str]
) -> None:
    for reply in ask(make_api(Priced()).app, path, body, wish, 2 if "idempotency-key" in wish else 1):
        assert json.loads(reply.body)["usage"]["cost"] == COST_NANO / 1e9
        assert reply.headers["x-headrace-cost-usd"] == "0.00000125"
        assert reply.headers["x-ratelimit-remaining-requests"] == "7"


@WIRES
@WAYS
def test_a_stream_tells_limits_in_its_headers_and_its_cost_in_its_last_usage(
    make_api: Any, path: str, body: dict[str, Any], wish: dict[str, str]
) -> None:
    options = {} if path == "/v1/messages" else {"stream_options": {"include_usage": True}}
    (reply,) = ask(make_api(Priced()).app, path, {**body, "stream": True, **options}, wish)
    assert reply.headers["x-ratelimit-remaining-requests"] == "7"
    assert usages(reply)[-1]["cost"] == COST_NANO / 1e9


def test_a_resumed_stream_has_the_headers_of_its_call_and_its_cost_once_that_is_known(make_api: Any) -> None:
    async def main() -> None:
        app = make_api(Priced()).app
        wish = {"x-resume-grace": "30", "x-request-id": "r1"}
        await Connection(app).open("POST", TEXT[0], {**TEXT[1], "stream": True}, wish).ended()
        again = await Connection(app).open("GET", "/v1/requests/r1/events").ended()
        assert again.headers["x-ratelimit-remaining-requests"] == "7"
        assert again.headers["x-headrace-cost-usd"] == "0.00000125"

    asyncio.run(main())


@WIRES
@pytest.mark.parametrize("wish", [{}, {"x-resume-grace": "30"}], ids=["plain", "resumable"])
def test_a_failure_tells_what_was_charged_all_the_same(
    make_api: Any, path: str, body: dict[str, Any], wish: dict[str, str]
) -> None:
    (reply,) = ask(make_api(Priced(fails=True)).app, path, body, wish)
    assert reply.status == 504
    assert reply.headers["x-headrace-cost-usd"] == "0.00000125"
    assert reply.headers["x-ratelimit-remaining-requests"] == "7"


def test_several_prompts_of_one_call_cost_their_sum(make_api: Any) -> None:
    (reply,) = ask(make_api(Priced()).app, TEXT[0], {"prompt": ["q", "r", "s"]}, {})
    assert json.loads(reply.body)["usage"]["cost"] == 3 * COST_NANO / 1e9
    assert reply.headers["x-headrace-cost-usd"] == "0.00000375"


def test_what_has_no_price_has_no_cost(api: Any) -> None:
    for path, body in (CHAT, TEXT, MESSAGES):
        (reply,) = ask(api.app, path, body, {})
        assert "cost" not in json.loads(reply.body)["usage"]
        assert "x-headrace-cost-usd" not in reply.headers
