"""GET /v1/requests/{id}/why: answered to who asked, in full; to all others the request does not exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headrace.api import Models
from headrace.core.request import RequestId
from headrace.core.why import ChoiceNote, Explanation, RequestState


class Engine:
    """Knows one request."""

    def __init__(self, *known: str) -> None:
        self.known = known
        self.asked: list[str] = []

    async def explain(self, request_id: RequestId) -> Explanation | None:
        self.asked.append(request_id)
        if request_id not in self.known:
            return None
        choice = ChoiceNote(index=0, state=RequestState.FINISHED, sentence="It ended: stop.", finish="stop")
        return Explanation(
            id=request_id, model="echo", state=RequestState.FINISHED, sentence="It went.", age_s=2.0, choices=[choice]
        )


def serve(make_api: Any, engine: Engine, **state: Any) -> Any:
    plain = make_api()
    (model,) = plain.app._app.state.api.models
    return make_api(models=Models([replace(model, explain=engine.explain)]), **state)


def test_an_explanation_is_found_by_the_id_of_the_header_and_of_the_reply(make_api: Any) -> None:
    engine = Engine("chatcmpl-mine")
    api = serve(make_api, engine)
    body = {"messages": [{"role": "user", "content": "hi"}]}
    reply = api.call("POST", "/v1/chat/completions", json=body, headers={"x-request-id": "mine"})
    assert reply.status_code == 200
    for spelled in ("mine", reply.json()["id"]):
        why = api.call("GET", f"/v1/requests/{spelled}/why")
        assert why.status_code == 200
        assert why.json() == {
            "id": "chatcmpl-mine",
            "model": "echo",
            "state": "finished",
            "sentence": "It went.",
            "age_s": 2.0,
            "choices": [{"index": 0, "state": "finished", "sentence": "It ended: stop.", "finish": "stop"}],
        }


def test_several_prompts_of_one_call_are_told_together(make_api: Any) -> None:
    api = serve(make_api, Engine("cmpl-mine-0", "cmpl-mine-1"))
    body = {"prompt": ["a", "b"], "max_tokens": 1}
    api.call("POST", "/v1/completions", json=body, headers={"x-request-id": "mine"})
    why = api.call("GET", "/v1/requests/mine/why").json()
    assert why["id"] == "cmpl-mine-0"
    assert [choice["index"] for choice in why["choices"]] == [0, 1]


def test_an_id_that_nobody_used_is_not_looked_for(make_api: Any) -> None:
    engine = Engine("cmpl-secret")
    reply = serve(make_api, engine).call("GET", "/v1/requests/secret/why")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "request_not_found"
    assert engine.asked == []


def test_a_request_that_no_engine_remembers_is_said_to_be_gone(make_api: Any) -> None:
    api = serve(make_api, Engine("other"))
    api.call(
        "POST",
        "/v1/completions",
        json={"prompt": "x", "max_tokens": 1},
        headers={"x-request-id": "mine"},
    )
    reply = api.call("GET", "/v1/requests/mine/why")
    assert reply.status_code == 404
    assert "ended more than ten minutes ago" in reply.json()["error"]["message"]
