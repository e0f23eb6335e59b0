"""What a request came to can be asked afterwards, and calls that were turned away are told to the accounts, once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from headrace.core.caller import Caller
from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import BudgetExceeded, HeadraceError, Overloaded, Unauthorized
from tests.unit.api.asgi import Connection

CHAT = {"messages": [{"role": "user", "content": "q"}]}
ASKING = [
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"prompt": "q"}),
    ("/v1/messages", {"model": "echo", "max_tokens": 8, **CHAT}),
    ("/v1/prefixes", {"prompt": "q"}),
]


class Keys:
    """Knows callers by the name in their key."""

    async def identify(self, path: str, headers: Any) -> Caller:
        name = headers.get("authorization", "").removeprefix("Bearer ")
        if name == "wrong":
            raise Unauthorized("no such key")
        return Caller(tenant=f"tenant-{name}" if name else "", key_id=name)


class Priced:
    """Answers at a price."""

    async def generate(self, request: Any) -> Any:
        usage = Usage(prompt_tokens=3, completion_tokens=2, cost_nano=1_250)
        yield Delta(text="b", token_ids=(2,), finish=FinishReason.LENGTH, usage=usage)


class Refusing:
    """Refuses as a stage of the gateway does."""

    def __init__(self, refusal: HeadraceError) -> None:
        self._refusal = refusal

    async def generate(self, request: Any) -> Any:
        raise self._refusal
        yield


def speak(app: Any, *calls: tuple[str, str, Any, dict[str, str]]) -> list[Connection]:
    async def main() -> list[Connection]:
        return [await Connection(app).open(*call).ended() for call in calls]

    return asyncio.run(main())


def test_a_stream_whose_caller_asked_for_no_usage_has_its_cost_afterwards(make_api: Any) -> None:
    app = make_api(Priced(), gatekeeper=Keys()).app
    mine = {"authorization": "Bearer ann", "x-request-id": "r1"}
    body = {**CHAT, "stream": True}
    stream, by_id, by_reply, other = speak(
        app,
        ("POST", "/v1/chat/completions", body, mine),
        ("GET", "/v1/requests/r1", None, mine),
        ("GET", "/v1/requests/chatcmpl-r1", None, mine),
        ("GET", "/v1/requests/r1", None, {"authorization": "Bearer bob"}),
    )
    assert b"cost" not in stream.body
    assert stream.headers["x-request-id"] == "r1"
    for reply in (by_id, by_reply):
        assert json.loads(reply.body)["usage"]["cost"] == 1_250 / 1e9
        assert reply.headers["x-headrace-cost-usd"] == "0.00000125"
    told = json.loads(by_id.body)
    assert (told["status"], told["model"], told["usage"]["total_tokens"]) == ("finished", "echo", 5)
    assert other.status == 404


def test_what_the_accounts_settled_goes_before_what_the_caller_was_told(make_api: Any) -> None:
    settled = Usage(prompt_tokens=3, completion_tokens=9, cost_nano=7)
    app = make_api(Priced(), gatekeeper=Keys(), settled=lambda key_id, request_id: settled).app
    mine = {"authorization": "Bearer ann", "x-request-id": "r1"}
    *_, reply = speak(app, ("POST", "/v1/completions", {"prompt": "q"}, mine), ("GET", "/v1/requests/r1", None, mine))
    assert json.loads(reply.body)["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize(("path", "body"), ASKING)
@pytest.mark.parametrize("stream", [False, True])
def test_who_finds_no_room_is_told_to_the_accounts_once(make_api: Any, path: str, body: Any, stream: bool) -> None:
    def full(knock: Any) -> None:
        raise Overloaded("9 are waiting", retry_after_s=1.0)

    heard: list[tuple[str, str, str]] = []
    api = make_api(
        gatekeeper=Keys(), check_room=full, note_refused=lambda c, model, err: heard.append((c.tenant, model, err.code))
    )
    sent = body if path == "/v1/prefixes" else {**body, "stream": stream}
    (reply,) = speak(api.app, ("POST", path, sent, {"authorization": "Bearer ann"}))
    assert reply.status == 429
    assert heard == [("tenant-ann", "echo", "overloaded")]


def test_a_refusal_by_a_budget_is_told_and_a_failure_that_was_settled_is_not(make_api: Any) -> None:
    heard: list[str] = []
    settled = Overloaded("an upstream was full", retry_after_s=1.0)
    settled.is_settled = True
    for refusal in (BudgetExceeded("nothing left", scope="tenant:a"), settled):
        api = make_api(Refusing(refusal), note_refused=lambda c, model, err: heard.append(err.code))
        for _, (path, body) in zip(range(3), ASKING, strict=False):
            speak(api.app, ("POST", path, {**body, "stream": True}, {}))
    assert heard == [BudgetExceeded.code] * 3


def test_a_wrong_key_is_told_and_other_paths_are_not(make_api: Any) -> None:
    heard: list[tuple[str, str]] = []
    api = make_api(gatekeeper=Keys(), note_refused=lambda c, model, err: heard.append((c.tenant, err.code)))
    wrong = {"authorization": "Bearer wrong"}
    speak(api.app, ("POST", "/v1/completions", {"prompt": "q"}, wrong), ("GET", "/v1/models", None, wrong))
    assert heard == [("", Unauthorized.code)]


def test_a_prefix_is_asked_in_its_callers_name(make_api: Any) -> None:
    api = make_api(Priced(), gatekeeper=Keys())
    headers = {"authorization": "Bearer ann", "x-task-id": "job"}
    (reply,) = speak(api.app, ("POST", "/v1/prefixes", {"prompt": "once upon"}, headers))
    (request,) = api.upstream.requests
    assert (request.tenant, request.key_id, request.namespace) == ("tenant-ann", "ann", "tenant/tenant-ann")
    assert json.loads(reply.body)["cost"] == 1_250 / 1e9
    assert reply.headers["x-headrace-cost-usd"] == "0.00000125"
