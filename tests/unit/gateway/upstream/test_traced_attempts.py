"""Each attempt at an upstream is a span of its own, and the server asked hears of exactly that one."""

from __future__ import annotations

import msgspec

from headrace.core.clock import MonotonicClock
from headrace.obs.otel import OtelTracer
from tests.otlp_receiver import running_receiver
from tests.unit.gateway.upstream.scripted import (
    ScriptedServer,
    a_request,
    answer,
    deltas_of,
    fleet_of,
    play,
    status,
    text_of,
)


def test_a_failed_attempt_and_the_one_that_followed_are_siblings() -> None:
    async def run() -> None:
        async with ScriptedServer([status(503), answer("Hel", "lo")]) as server:
            tracer = OtelTracer(receiver.url, 1.0, MonotonicClock(), "0")
            span = tracer.begin("POST /v1/chat/completions", "chat", {"tracestate": "ignored without traceparent"})
            request = msgspec.structs.replace(a_request(text="the words"), span=span)
            assert text_of(await deltas_of(fleet_of(server.url), request)) == "Hello"
            span.end()
            tracer.close()
            parents.extend(call.headers["traceparent"].split("-")[2] for call in server.calls)

    parents: list[str] = []
    with running_receiver() as receiver:
        play(run())
    whole = receiver.one("POST /v1/chat/completions")
    failed, good = (span for span in receiver.spans if span.name == "chat m")
    assert {failed.parent_id, good.parent_id} == {whole.span_id}
    assert parents == [failed.span_id, good.span_id]
    assert (failed.is_error, failed.attributes["error.type"]) == (True, "transient")
    assert not good.is_error
    assert good.attributes["gen_ai.usage.output_tokens"] == 2
    assert good.attributes["gen_ai.provider.name"] == "generic"
    assert b"the words" not in receiver.raw


def test_an_upstream_hears_of_no_trace_where_there_is_none() -> None:
    async def run() -> None:
        async with ScriptedServer([answer("ok")]) as server:
            await deltas_of(fleet_of(server.url), a_request())
            assert "traceparent" not in server.calls[0].headers

    play(run())
