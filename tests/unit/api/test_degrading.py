"""Graceful degradation over HTTP: what is tried in which order, what callers are told, and that it is never silent."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.api import Ladders, Models, ServedModel
from headrace.core.audit import AuditEvent
from headrace.core.caller import Caller
from headrace.core.degrade_settings import DegradeSettings
from headrace.core.delta import Delta
from headrace.core.errors import ConfigError, DeadlineUnreachable, Forbidden, Overloaded
from headrace.testing import ByteTokenizer, EchoUpstream, VirtualClock

PATH = "/v1/completions"


class Engine:
    """Answers as an echo does while it has room; remembers what it was asked."""

    def __init__(self, tokenizer: Any) -> None:
        self._echo = EchoUpstream(tokenizer)
        self.requests: list[Any] = []
        self.refusal: Exception | None = None
        self.expected_s = 0.0
        self.headers: tuple[tuple[str, str], ...] = ()
        self.most_tokens = 1 << 20

    async def generate(self, request: Any) -> Any:
        self.requests.append(request)
        if self.refusal is not None or request.stop.max_tokens > self.most_tokens:
            raise self.refusal or Overloaded("the queue is full", retry_after_s=7.0)
        if self.headers:
            yield Delta(headers=self.headers)
        async for delta in self._echo.generate(request):
            yield delta

    def check_room(self, knock: Any) -> None:
        if knock.deadline_s is not None and self.expected_s > knock.deadline_s:
            raise DeadlineUnreachable("too late", retry_after_s=3.0)


class Doorman:
    async def identify(self, path: str, headers: Any) -> Caller:
        key = headers.get("authorization", "")
        return Caller(tenant=key, key_id=key, models=frozenset({"small"}) if key == "narrow" else None)


class Auditor:
    content_limit = 0

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def wants(self, method: str, path: str, decision: str) -> bool:
        return True

    def check(self) -> None: ...

    def settled(self, request_id: str) -> None: ...

    def record(self, event: AuditEvent, content: Any = None) -> None:
        self.events.append(event)


class World:
    """Two models, `big` with a ladder."""

    def __init__(self, make_api: Any, steps: str, **settings: Any) -> None:
        tokenizer: Any = ByteTokenizer()
        self.clock = VirtualClock()
        self.big, self.small = Engine(tokenizer), Engine(tokenizer)
        self.ladders = Ladders(DegradeSettings(steps={"big": steps}, **settings), self.clock)
        self.auditor = Auditor()
        models = [
            ServedModel(
                name=name, root="file:x", upstream=engine, tokenizer=tokenizer, template=None, max_context=500,
                created=7, check_room=engine.check_room,
            )
            for name, engine in (("big", self.big), ("small", self.small))
        ]  # fmt: skip
        self.api = make_api(
            models=Models(models), ladders=self.ladders, auditor=self.auditor, gatekeeper=Doorman(), clock=self.clock
        )

    def ask(self, key: str = "", headers: Any = None, **fields: Any) -> Any:
        body = {"model": "big", "prompt": "hello", "max_tokens": 50, "temperature": 0, **fields}
        return self.api.call("POST", PATH, json=body, headers={"authorization": key, **(headers or {})})

    def full(self) -> None:
        self.big.refusal = Overloaded("the queue is full", retry_after_s=7.0)


def test_without_trouble_nothing_is_degraded(make_api: Any) -> None:
    world = World(make_api, "model:small")
    reply = world.ask()
    assert (reply.status_code, "x-headrace-degraded" in reply.headers) == (200, False)
    assert (world.ladders.counts, world.auditor.events[-1].degraded) == ({}, "")


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_model_hands_over_to_a_smaller_one_and_says_so(make_api: Any, stream: bool) -> None:
    world = World(make_api, "model:small")
    world.full()
    reply = world.ask(stream=stream)
    assert reply.status_code == 200
    assert reply.headers["x-headrace-degraded"] == "model:small; reason=overload"
    assert [request.model for request in world.small.requests] == ["small"]
    assert world.ladders.counts == {("big", "model", "overload"): 1}
    event = world.auditor.events[-1]
    assert (event.decision, event.degraded, event.model) == ("allowed", "model:small; reason=overload", "big,small")


def test_a_caller_that_says_never_gets_the_refusal(make_api: Any) -> None:
    world = World(make_api, "model:small")
    world.full()
    reply = world.ask(headers={"x-headrace-degrade": "never"})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert (world.small.requests, world.ladders.counts) == ([], {})
    assert world.auditor.events[-1].reason == "overload"
    assert world.ask(headers={"x-headrace-degrade": "no"}).status_code == 400


def test_a_shorter_answer_is_tried_before_it_is_refused(make_api: Any) -> None:
    world = World(make_api, "shorter:5 model:small")
    world.big.most_tokens = 10
    reply = world.ask()
    assert reply.headers["x-headrace-degraded"] == "shorter:5; reason=overload"
    assert [request.stop.max_tokens for request in world.big.requests] == [50, 5]
    assert reply.json()["usage"]["completion_tokens"] <= 5
    world.full()
    assert world.ask().headers["x-headrace-degraded"] == "model:small; reason=overload"
    assert world.ladders.counts == {("big", "shorter", "overload"): 1, ("big", "model", "overload"): 1}


def test_low_priority_is_shed_first(make_api: Any) -> None:
    world = World(make_api, "shed:10 model:small")
    world.full()
    shed = world.ask(priority=10)
    assert (shed.status_code, shed.headers["x-headrace-degraded"]) == (429, "shed:10; reason=overload")
    assert "priority" in shed.json()["error"]["message"]
    assert world.auditor.events[-1].degraded == "shed:10; reason=overload"
    assert world.ask(service_tier="flex").status_code == 429
    assert world.ask(priority=9).status_code == 200
    assert world.ladders.counts == {("big", "shed", "overload"): 2, ("big", "model", "overload"): 1}


def test_an_exact_question_is_answered_from_before_within_its_tenant(make_api: Any) -> None:
    world = World(make_api, "cache", cache_s=60)
    first = world.ask("a")
    world.full()
    again = world.ask("a")
    assert again.headers["x-headrace-degraded"] == "cache; reason=overload"
    assert again.json()["choices"] == first.json()["choices"]
    assert '"text":' in world.ask("a", stream=True).text
    assert world.ask("b").status_code == 429
    assert world.ask("a", prompt="other").status_code == 429
    assert world.ask("a", max_tokens=49).status_code == 429
    world.clock.advance(61)
    assert world.ask("a").status_code == 429


def test_only_determined_answers_are_kept(make_api: Any) -> None:
    world = World(make_api, "cache")
    for sampling, status in (({"temperature": 1.0}, 429), ({"temperature": 1.0, "seed": 3}, 200)):
        world.big.refusal = None
        world.ask("a", **sampling)
        world.full()
        assert world.ask("a", **sampling).status_code == status


def test_a_kept_answer_is_not_for_a_key_that_may_not_ask_the_model(make_api: Any) -> None:
    world = World(make_api, "cache")
    world.ask("narrow")
    world.full()
    assert world.ask("narrow").status_code == 429


def test_kept_answers_stay_within_their_bytes(make_api: Any) -> None:
    world = World(make_api, "cache", cache_mib=1)
    for n in range(400):
        world.ask("a", prompt=f"{n:03}" * 50, max_tokens=200)
    assert 500_000 < world.ladders.answers.num_bytes <= 1 << 20


def test_a_first_token_too_far_off_is_a_reason(make_api: Any) -> None:
    world = World(make_api, "model:small", over_ttft_ms=500)
    assert "x-headrace-degraded" not in world.ask().headers
    world.big.expected_s = 2.0
    assert world.ask().headers["x-headrace-degraded"] == "model:small; reason=ttft"
    world.small.refusal = Overloaded("full too", retry_after_s=1.0)
    reply = world.ask()
    assert (reply.status_code, "x-headrace-degraded" in reply.headers) == (200, False)
    assert world.big.requests[-1].deadline_s is None
    assert world.ask(deadline_ms=100).status_code == 429


def test_an_exceeded_soft_budget_is_a_reason_for_a_while(make_api: Any) -> None:
    world = World(make_api, "shorter:5")
    world.big.headers = (("x-headrace-budget-warning", "tenant:a is past its mark"),)
    assert "x-headrace-degraded" not in world.ask("a").headers
    assert world.ask("a").headers["x-headrace-degraded"] == "shorter:5; reason=budget"
    assert "x-headrace-degraded" not in world.ask("b").headers
    world.big.headers = ()
    world.clock.advance(61)
    assert "x-headrace-degraded" not in world.ask("a").headers
    careless = World(make_api, "shorter:5", soft_budget=False)
    careless.big.headers = (("x-headrace-budget-warning", "past"),)
    careless.ask("a")
    assert "x-headrace-degraded" not in careless.ask("a").headers


def test_a_step_that_does_not_work_leaves_the_first_refusal(make_api: Any) -> None:
    world = World(make_api, "model:nothing model:small")
    world.full()
    world.small.refusal = Forbidden("not for this key")
    reply = world.ask()
    assert (reply.status_code, reply.json()["error"]["code"], reply.headers["retry-after"]) == (429, "overloaded", "7")
    assert "x-headrace-degraded" not in reply.headers
    assert world.ladders.counts == {}
    event = world.auditor.events[-1]
    assert (event.decision, event.code, event.degraded) == ("refused", "overloaded", "")


def test_faults_of_the_caller_lead_down_no_ladder(make_api: Any) -> None:
    world = World(make_api, "model:small")
    assert world.ask(max_tokens=-1).status_code == 400
    world.big.refusal = Forbidden("not for this key")
    assert world.ask().status_code == 403
    assert world.small.requests == []


def test_resumable_calls_are_not_degraded(make_api: Any) -> None:
    world = World(make_api, "model:small")
    world.full()
    assert world.ask(headers={"idempotency-key": "k"}).status_code == 429


WRONG = ["", "smaller", "cache:1", "shorter:0", "shorter:x", "model:", "model:big", "shed:999"]


@pytest.mark.parametrize("steps", WRONG)
def test_steps_that_are_none_are_named_at_the_start(steps: str) -> None:
    with pytest.raises(ConfigError, match=r"degrade\.steps of 'big'"):
        Ladders(DegradeSettings(steps={"big": steps}))


def test_steps_name_models_that_are_served() -> None:
    ladders = Ladders(DegradeSettings(steps={"big": "cache model:smal"}))
    ladders.check(["big", "smal"])
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        ladders.check(["big", "small"])
    with pytest.raises(ConfigError, match="'big' is not served"):
        ladders.check(["smal"])
