"""Everything around the two generating endpoints: access, limits, ids, health, tokens, unknown paths."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from headrace.api import Models, SharedKey
from headrace.core.caller import Caller
from headrace.core.delta import Delta, FinishReason
from headrace.core.errors import Forbidden
from headrace.core.health import (
    HealthState,
    ModelHealth,
    SequencePhase,
    ServerHealth,
    StartProgress,
    StuckRequest,
)
from headrace.obs import DoorMetrics


def test_models_are_listed_with_root_and_context(api: Any) -> None:
    card = api.call("GET", "/v1/models").json()["data"][0]
    assert (card["id"], card["root"], card["max_model_len"], card["owned_by"]) == ("echo", "file:echo", 64, "headrace")
    assert api.call("GET", "/v1/models/echo").json() == card


def test_unknown_model_is_404_with_the_nearest_names(api: Any) -> None:
    for response in (api.chat(model="ecko"), api.call("GET", "/v1/models/ecko")):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert "'echo'" in response.json()["error"]["message"]


def test_tokens_go_there_and_back(api: Any) -> None:
    reply = api.post("/tokenize", prompt="hé", return_token_strs=True).json()
    assert reply["tokens"] == [256, 104, 0xC3, 0xA9]
    assert (reply["count"], reply["max_model_len"], reply["token_strs"][:2]) == (4, 64, ["<bos>", "h"])
    assert api.post("/detokenize", tokens=[104, 0xC3, 0xA9]).json() == {"prompt": "hé"}


def test_messages_are_tokenized_through_the_template(api: Any) -> None:
    tokens = api.post("/tokenize", messages=[{"role": "user", "content": "q"}]).json()["tokens"]
    assert tokens[0] == 256
    assert bytes(tokens[1:]) == b"u:q\na:"


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": []}])
def test_tokenize_wants_a_prompt_or_messages(api: Any, body: dict[str, Any]) -> None:
    assert api.post("/tokenize", **body).status_code == 400


def test_health_follows_the_engine(api: Any) -> None:
    paths = ("/health/ready", "/health", "/health/live", "/health/progress")
    for state, codes in {
        HealthState.READY: [200, 200, 200, 200],
        HealthState.DEGRADED: [200, 200, 200, 200],
        HealthState.STARTING: [503, 503, 200, 200],
        HealthState.DRAINING: [503, 503, 200, 200],
        HealthState.STALLED: [503, 503, 200, 200],
        HealthState.DEAD: [503, 503, 503, 200],
    }.items():
        api.health[0] = ServerHealth(state=state, reason="why")
        replies = [api.call("GET", path) for path in paths]
        assert [reply.status_code for reply in replies] == codes, state
        assert all(reply.json() == {"state": state.value, "reason": "why"} for reply in replies)


def test_readiness_tells_how_far_the_start_is_and_keeps_request_ids_to_itself(make_api: Any) -> None:
    api = make_api(gatekeeper=SharedKey("s3cret"))
    stuck = (StuckRequest("chatcmpl-7", SequencePhase.DECODE, 130.0),)
    api.health[0] = ServerHealth(
        state=HealthState.STARTING,
        start=StartProgress(phase="load", model="m", done=0.5, models=2),
        models={"m": ModelHealth(state=HealthState.DEGRADED, stuck=stuck)},
    )
    told = api.call("GET", "/health/ready").json()
    assert (told["start"]["phase"], told["start"]["model"], told["start"]["done"]) == ("load", "m", 0.5)
    assert "models" not in told
    assert api.call("GET", "/health/progress").status_code == 401
    progress = api.call("GET", "/health/progress", headers={"authorization": "Bearer s3cret"}).json()
    assert progress["models"]["m"]["stuck"] == [{"request_id": "chatcmpl-7", "phase": "decode", "idle_s": 130.0}]


def test_requests_that_come_before_their_model_are_told_to_come_back(make_api: Any) -> None:
    api = make_api(models=Models(loading=lambda: "the server is starting (load 43% of echo)"))
    for response in (api.chat(), api.chat(model="echo")):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
        assert "load 43% of echo" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) >= 1
    assert api.call("GET", "/v1/models").json()["data"] == []


def test_version_and_metrics_answer(api: Any) -> None:
    assert api.call("GET", "/version").json() == {"version": "1.2.3"}
    assert api.call("GET", "/metrics").text == "metric 1\n"


def test_request_ids_are_echoed_or_made(api: Any) -> None:
    response = api.call("GET", "/version", headers={"x-request-id": "r-1", "x-correlation-id": "c-1"})
    assert (response.headers["x-request-id"], response.headers["x-correlation-id"]) == ("r-1", "c-1")
    made = api.call("GET", "/version", headers={"x-request-id": "bad id\twith spaces"}).headers["x-request-id"]
    assert len(made) == 32
    assert api.chat().json()["id"].startswith("chatcmpl-")


def test_errors_have_an_id_too(api: Any) -> None:
    assert api.call("POST", "/v1/chat/completions", content=b"{").headers["x-request-id"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"{", "not JSON"), (b'"text"', "Expected `object`"), (b"\xff{}", "not JSON")],
)
def test_malformed_bodies_are_400(api: Any, content: bytes, said: str) -> None:
    response = api.call("POST", "/v1/chat/completions", content=content)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed_body")
    assert said in response.json()["error"]["message"]


def test_bodies_have_a_limit(api: Any) -> None:
    async def drip() -> Any:
        for _ in range(5):
            yield b" " * 1000

    for content in (b" " * 5000, drip()):
        response = api.call("POST", "/v1/completions", content=content)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        assert "4,096" in response.json()["error"]["message"]


def test_unknown_paths_and_methods_have_openai_errors(api: Any) -> None:
    missing = api.call("GET", "/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = api.call("GET", "/v1/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.json()["error"]["message"] == "/v1/completions does not take GET; use POST"


def test_a_browser_is_shown_what_is_served_and_a_command_that_asks_it(make_api: Any) -> None:
    page = make_api().call("GET", "/", headers={"accept": "text/html,*/*", "host": "here:8000"})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<td>echo</td><td>prompt and answer of up to 64 tokens</td>" in page.text
    assert "curl http://here:8000/v1/chat/completions" in page.text
    assert "<script" not in page.text
    plain = make_api().call("GET", "/")
    assert plain.text == "Headrace 1.2.3 serves echo at http://test/v1\n"
    hostile = make_api().call("GET", "/", headers={"accept": "text/html", "host": "<b>x"})
    assert "<b>x" not in hostile.text
    assert make_api(gatekeeper=SharedKey("s3cret")).call("GET", "/").status_code == 401


def test_a_key_guards_all_but_health(make_api: Any) -> None:
    api = make_api(gatekeeper=SharedKey("s3cret"))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
        response = api.call("GET", "/v1/models", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert api.call("GET", "/v1/models", headers={"authorization": "bearer s3cret"}).status_code == 200
    assert api.call("GET", "/health/live").status_code == 200
    assert api.call("GET", "/healthy").status_code == 401


def test_pages_of_named_origins_may_call_and_others_may_not(make_api: Any) -> None:
    api = make_api(gatekeeper=SharedKey("s3cret"), cors_origins=("https://app.example",))
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for origin, code, is_allowed in (("https://app.example", 200, True), ("https://evil.example", 400, False)):
        preflight = api.call("OPTIONS", "/v1/chat/completions", headers={"origin": origin, **asking})
        assert preflight.status_code == code
        assert ("access-control-allow-origin" in preflight.headers) == is_allowed
    headers = {"origin": "https://app.example", "authorization": "Bearer s3cret"}
    reply = api.call("GET", "/v1/models", headers=headers)
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in reply.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in make_api().call("GET", "/version", headers=headers).headers


def test_unexpected_failures_tell_the_id_only(make_api: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def generate(self, request: Any) -> Any:
            raise ZeroDivisionError("secret detail")
            yield

    response = make_api(Broken()).chat()
    assert response.status_code == 500
    assert response.headers["x-request-id"] in response.json()["error"]["message"]
    assert "secret detail" not in response.text


def test_logs_hold_no_content(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        api.chat("my-private-words", user="my-private-user")
        api.post("/v1/completions", prompt="my-private-words", temprature=1)
    assert "my-private" not in caplog.text
    assert "/v1/chat/completions" in caplog.text


class Endless:
    """Never stops by itself; says when it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def generate(self, request: Any) -> Any:
        try:
            while True:
                yield Delta(text="x", token_ids=(120,))
                await asyncio.sleep(0)
        finally:
            self.is_closed = True


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "q"}], "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "q"}]}),
        ("/v1/completions", {"prompt": "q", "stream": True}),
        ("/v1/completions", {"prompt": ["p", "q"], "stream": True}),
        ("/v1/completions", {"prompt": ["p", "q"]}),
    ],
)
def test_a_client_that_goes_away_ends_the_work(make_api: Any, path: str, body: dict[str, Any]) -> None:
    upstream = Endless()
    app = make_api(upstream).app
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    gone = asyncio.Event()
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > 3:
            gone.set()

    async def run() -> None:
        asyncio.get_running_loop().call_later(0.05, gone.set)
        async with asyncio.timeout(60):
            await app(scope, receive, send)

    asyncio.run(run())
    assert upstream.is_closed


def test_one_failing_prompt_ends_its_neighbours(make_api: Any) -> None:
    class Half(Endless):
        async def generate(self, request: Any) -> Any:
            if request.prompt[-1] == ord("b"):
                yield Delta(finish=FinishReason.ERROR, error="row failed")
                return
            async for delta in Endless.generate(self, request):
                yield delta

    for stream in (False, True):
        upstream = Half()
        response = make_api(upstream).post("/v1/completions", prompt=["a", "b"], stream=stream)
        assert "row failed" in response.text
        assert "[DONE]" not in response.text


class Recording:
    """A gatekeeper that lets everyone in but `intruder`, and remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    async def identify(self, path: str, headers: Any) -> Caller:
        self.seen.append(dict(headers))
        if headers.get("authorization") == "Bearer intruder":
            raise Forbidden("this key is for something else")
        return Caller(tenant="acme")


def test_a_header_that_names_a_tenant_is_taken_off_and_counted(make_api: Any) -> None:
    gatekeeper, door = Recording(), DoorMetrics()
    api = make_api(gatekeeper=gatekeeper, door=door)
    headers = {"X-Headrace-Tenant": "other", "x-tenant-id": "other", "x-other": "kept"}
    assert api.call("GET", "/v1/models", headers=headers).status_code == 200
    assert "other" not in gatekeeper.seen[0].values()
    assert gatekeeper.seen[0]["x-other"] == "kept"
    assert dict(door.stripped) == {"x-headrace-tenant": 1, "x-tenant-id": 1}


def test_a_refusal_at_the_door_has_its_status_and_is_counted(make_api: Any) -> None:
    door = DoorMetrics()
    api = make_api(gatekeeper=Recording(), door=door)
    response = api.call("GET", "/v1/models", headers={"authorization": "Bearer intruder", "x-request-id": "r1"})
    assert (response.status_code, response.json()["error"]["type"]) == (403, "permission_error")
    assert response.headers["x-request-id"] == "r1"
    assert dict(door.refused) == {"forbidden": 1}


def test_a_caller_is_shown_its_own_models_and_names_its_task(make_api: Any) -> None:
    class Limited(Recording):
        async def identify(self, path: str, headers: Any) -> Caller:
            return Caller(tenant="acme", key_id="k", models=frozenset({"other"}))

    api = make_api(gatekeeper=Limited())
    assert api.call("GET", "/v1/models").json()["data"] == []
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert api.call("POST", "/v1/chat/completions", json=body, headers={"x-task-id": "t1"}).status_code == 200
    asked = api.upstream.requests[-1]
    assert (asked.tenant, asked.key_id, asked.task, asked.namespace) == ("acme", "k", "t1", "tenant/acme")
    refused = api.call("POST", "/v1/chat/completions", json=body, headers={"x-task-id": "a b"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Task-Id")


@pytest.mark.parametrize("is_stream", [False, True])
def test_headers_that_stages_tell_are_on_the_reply(make_api: Any, is_stream: bool) -> None:
    class Telling:
        async def generate(self, request: Any) -> Any:
            yield Delta(text="a", headers=(("x-ratelimit-remaining-requests", "3"),))
            yield Delta(finish=FinishReason.STOP)

    reply = make_api(Telling()).chat(stream=is_stream)
    assert reply.headers["x-ratelimit-remaining-requests"] == "3"
