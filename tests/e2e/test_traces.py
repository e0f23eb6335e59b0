"""Two servers in a chain, a real collector: one trace, every stage in it, and nothing of what was said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import SMALL, Server, running
from tests.otlp_receiver import OtlpReceiver, running_receiver

CLIENT, SERVER = 3, 2  # span kinds of the wire
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WORDS = "Sesquipedalian"


class Told:
    """What a chain of two servers told a collector, and what the client was answered."""

    def __init__(self, receiver: OtlpReceiver, answers: list[Any], logs: tuple[str, str]) -> None:
        self.receiver = receiver
        self.answers = answers
        self.logs = logs


@pytest.fixture(scope="module")
def told(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    directory = tmp_path_factory.mktemp("traced")
    answers: list[Any] = []
    with running_receiver() as receiver:
        telemetry = ["--otlp-endpoint", receiver.url]
        with running(f"file:{tiny_path}", "--backend", "reference", *SMALL, *telemetry) as back:
            config = directory / "front.toml"
            config.write_text(
                f"""
                database = "sqlite:///{directory / "accounts.db"}"
                [gateway]
                prices = {{ far = "1000/1000" }}
                [server]
                log_format = "json"
                [upstreams.back]
                url = "{back.url}"
                profile = "headrace"
                models = {{ far = "tiny" }}
                """
            )
            with running("--config", str(config), *telemetry) as front:
                answers.append(ask(front, "far", "a", {"traceparent": f"00-{TRACE}-{PARENT}-01"}))
                answers.append(ask(front, "nobody", "b", {}))
                answers.append(ask(front, "far", "c", {"traceparent": f"00-{TRACE[::-1]}-{PARENT}-00"}))
                front.get("/health/upstreams")
                assert (front.stop(), back.stop()) == (0, 0), front.log + back.log
        return Told(receiver, answers, (front.log, back.log))


def ask(server: Server, model: str, request_id: str, headers: dict[str, str]) -> Any:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": WORDS}],
        "max_tokens": 8,
        "temperature": 0.5,
        "seed": 1,
    }
    reply = httpx.post(
        f"{server.url}/v1/chat/completions",
        json=body,
        headers={"x-request-id": request_id, **headers},
        timeout=60,
        trust_env=False,
    )
    return reply.json()


def test_both_servers_spans_are_one_trace_of_the_callers(told: Told) -> None:
    receiver = told.receiver
    assert set(receiver.paths) == {"/v1/traces"}
    spans = [span for span in receiver.spans if span.trace_id == TRACE]
    front = next(span for span in spans if span.parent_id == PARENT)
    assert (front.name, front.kind) == ("POST /v1/chat/completions", SERVER)
    assert front.attributes["http.response.status_code"] == 200
    assert front.attributes["headrace.request_id"] == "a"
    attempt = receiver.one("chat far", front)
    assert attempt.kind == CLIENT
    assert attempt.attributes["server.address"] == "127.0.0.1"
    assert attempt.attributes["headrace.upstream"] == "back"
    back = receiver.one("POST /v1/chat/completions", attempt)
    assert back.service["service.instance.id"] != front.service["service.instance.id"]
    names = sorted(span.name for span in spans)
    assert names == sorted(
        ["POST /v1/chat/completions"] * 2 + ["auth"] * 2
        + ["admission", "chat far", "settle", "chat tiny", "queue", "prefill", "decode"]
    )  # fmt: skip
    ids = {span.span_id for span in spans}
    assert all(span.parent_id in ids for span in spans if span is not front)


def test_the_engines_stages_follow_one_another_without_a_gap(told: Told) -> None:
    whole = told.receiver.one("chat tiny")
    queue, prefill, decode = (told.receiver.one(name, whole) for name in ("queue", "prefill", "decode"))
    assert whole.start_ns == queue.start_ns
    assert (queue.end_ns, prefill.end_ns, decode.end_ns) == (prefill.start_ns, decode.start_ns, whole.end_ns)
    assert queue.start_ns <= queue.end_ns < prefill.end_ns <= decode.end_ns
    around = next(span for span in told.receiver.spans if span.span_id == whole.parent_id)
    assert around.start_ns <= whole.start_ns <= whole.end_ns <= around.end_ns


def test_attributes_are_those_of_the_conventions_and_agree_with_the_answer(told: Told) -> None:
    answer = told.answers[0]
    for name, provider in (("chat tiny", "headrace"), ("chat far", "headrace")):
        attributes = told.receiver.one(name).attributes
        assert attributes["gen_ai.operation.name"] == "chat"
        assert attributes["gen_ai.provider.name"] == provider
        assert attributes["gen_ai.request.model"] == name.split()[1]
        assert attributes["gen_ai.request.max_tokens"] == 8
        assert attributes["gen_ai.request.temperature"] == 0.5
        assert attributes["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
        assert attributes["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
        assert attributes["gen_ai.response.finish_reasons"] == [answer["choices"][0]["finish_reason"]]
    engine = told.receiver.one("chat tiny").attributes
    assert 0 < engine["headrace.engine_seconds"] < 60
    front = told.receiver.one("POST /v1/chat/completions", _named_parent(told.receiver)).attributes
    total = answer["usage"]["total_tokens"]
    assert front["gen_ai.usage.cost.amount"] == pytest.approx(total * 1000 / 1e6)
    assert front["gen_ai.usage.cost.currency"] == "USD"


def _named_parent(receiver: OtlpReceiver) -> Any:
    """The caller's own span, which it did not send."""
    return receiver.spans[0]._replace(span_id=PARENT)


def test_what_was_said_is_in_no_span(told: Told) -> None:
    said = told.answers[0]["choices"][0]["message"]["content"].encode()
    assert WORDS.encode() not in told.receiver.raw
    assert len(said) < 4 or said not in told.receiver.raw


def test_a_refused_request_has_a_trace_and_one_that_its_caller_did_not_sample_has_none(told: Told) -> None:
    refused = next(s for s in told.receiver.spans if s.attributes.get("headrace.request_id") == "b")
    assert refused.attributes["http.response.status_code"] == 404
    assert refused.attributes["error.type"] == "model_not_found"
    assert not refused.is_error  # the caller's doing, not the server's
    assert TRACE[::-1] not in {span.trace_id for span in told.receiver.spans}
    assert told.answers[2]["usage"]["completion_tokens"] > 0


def test_log_lines_carry_the_request_and_its_trace(told: Told) -> None:
    front, back = told.logs
    assert re.search(rf'"request_id":"a","trace_id":"{TRACE}"', front)
    assert f" trace={TRACE}" in back
    assert WORDS not in front + back
