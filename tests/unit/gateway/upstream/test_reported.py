"""What upstreams say their answers cost, in the shapes of the field, over real sockets: read exactly, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.core.delta import Usage
from headrace.core.upstream_settings import CostTrust
from tests.unit.gateway.upstream.scripted import (
    DONE,
    Deed,
    ScriptedServer,
    a_request,
    chunk,
    deltas_of,
    event,
    fleet_of,
    head,
    play,
    status,
    stream,
    text_of,
)

TOKENS = {"prompt_tokens": 3, "completion_tokens": 2}
WORDS = [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]
MESSAGE = {"type": "message", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn"}


def whole(usage: dict[str, Any], **headers: str) -> Deed:
    return status(200, {"choices": WORDS, "usage": {**TOKENS, **usage}}, **headers)


def streamed(usage: dict[str, Any]) -> Deed:
    last = event({"choices": [], "usage": {**TOKENS, **usage}})
    return stream(chunk("hi"), chunk(finish="stop"), last, DONE)


def verbatim(cost: str, *, is_stream: bool) -> Deed:
    """A reply whose cost is spelled as no JSON library would."""
    usage = f'{{"prompt_tokens": 3, "completion_tokens": 2, "cost": {cost}}}'
    if is_stream:
        return stream(
            chunk("hi"), chunk(finish="stop"), f'data: {{"choices": [], "usage": {usage}}}\n\n'.encode(), DONE
        )
    body = f'{{"choices": {json.dumps(WORDS)}, "usage": {usage}}}'.encode()

    async def deed(_: Any, writer: Any) -> None:
        writer.write(head(200, "application/json", content_length=str(len(body))) + body)

    return deed


async def usage_of(
    *deeds: Deed, wants_stream: bool = False, trust: CostTrust = "note", profile: Any = "generic"
) -> tuple[Usage, int]:
    """Ask a server as often as it has deeds; return the last usage and the upstream's total."""
    async with ScriptedServer(list(deeds)) as server:
        fleet = fleet_of(server.url, reported_cost=trust, profile=profile)
        for _ in deeds:
            deltas = await deltas_of(fleet, a_request(wants_stream=wants_stream))
            assert text_of(deltas) == "hi"
        usage = deltas[-1].usage
        assert usage is not None
        assert usage.prompt_tokens == 3
        return usage, fleet.status()[0].reported_nano


REPORTS = [
    pytest.param(whole({"cost": 0.00123}), False, 1_230_000, id="OpenRouter"),
    pytest.param(streamed({"cost": 0.00123}), True, 1_230_000, id="OpenRouter, LiteLLM or Headrace streaming"),
    pytest.param(whole({"cost": 1.5e-08}), False, 15, id="with an exponent"),
    pytest.param(whole({"cost": 0}), False, 0, id="free"),
    pytest.param(
        whole({"cost": 0.5, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.25}}),
        *(False, 750_000_000),
        id="OpenRouter, the provider bills a key of ours",
    ),
    pytest.param(
        whole({"cost": 0.5, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.25}}),
        *(False, 500_000_000),
        id="OpenRouter, the provider bills OpenRouter",
    ),
    pytest.param(whole({}, x_litellm_response_cost="0.0009884999999999998"), False, 988_500, id="LiteLLM's header"),
    pytest.param(whole({}, x_headrace_cost_usd="0.000000015"), False, 15, id="Headrace's header"),
    pytest.param(whole({"cost": 2}, x_litellm_response_cost="1"), False, 2 * 10**9, id="the body before the header"),
    pytest.param(whole({}, x_litellm_response_cost="None"), False, None, id="LiteLLM knows no price"),
    pytest.param(whole({"cost": None}), False, None, id="null"),
    pytest.param(whole({}), False, None, id="nothing"),
]


@pytest.mark.parametrize(("deed", "wants_stream", "expected_nano"), REPORTS)
def test_what_an_upstream_charges_is_read_to_the_nano_dollar(
    deed: Deed, wants_stream: bool, expected_nano: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        usage, total_nano = await usage_of(deed, wants_stream=wants_stream)
        assert (usage.reported_nano, usage.cost_nano) == (expected_nano, None)
        assert total_nano == (expected_nano or 0)

    play(scenario())
    assert not [record for record in caplog.records if "cost" in record.message]


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize(
    "cost",
    ["-0.5", "NaN", "-Infinity", "1e400", "10000.01", '"0.5"', "true", "{}", "[1]", "9" * 5000],
)
def test_a_cost_that_is_none_is_left_out_with_one_warning_and_the_answer_is_whole(
    cost: str, is_stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        usage, total_nano = await usage_of(*[verbatim(cost, is_stream=is_stream)] * 3, wants_stream=is_stream)
        assert (usage.reported_nano, usage.completion_tokens, total_nano) == (None, 2, 0)

    play(scenario())
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "upstream 'u0' reports a cost of" in warning
    assert "10,000 dollars" in warning
    assert "reported_cost" in warning
    assert len(warning) < 400


@pytest.mark.parametrize("details", ['"x"', "7", '{"upstream_inference_cost": "x"}', "{}"])
def test_details_of_a_cost_that_make_no_sense_add_nothing(details: str) -> None:
    async def scenario() -> None:
        cost = f'1, "is_byok": true, "cost_details": {details}'
        usage, _ = await usage_of(verbatim(cost, is_stream=False))
        assert usage.reported_nano == 10**9

    play(scenario())


def test_headers_of_a_stream_came_before_its_cost_was_known() -> None:
    async def deed(_: Any, writer: Any) -> None:
        pieces = chunk("hi") + chunk(finish="stop") + event({"choices": [], "usage": TOKENS}) + DONE
        writer.write(head(x_litellm_response_cost="0.0", content_length=str(len(pieces))) + pieces)

    async def scenario() -> None:
        usage, _ = await usage_of(deed, wants_stream=True)
        assert usage.reported_nano is None

    play(scenario())


@pytest.mark.parametrize(("trust", "expected"), [("note", (5, None)), ("charge", (5, 5)), ("ignore", (None, None))])
def test_settings_say_what_becomes_of_it(trust: CostTrust, expected: tuple[int | None, int | None]) -> None:
    async def scenario() -> None:
        usage, total_nano = await usage_of(whole({"cost": 5e-9}), trust=trust)
        assert (usage.reported_nano, usage.cost_nano) == expected
        assert total_nano == (expected[0] or 0)

    play(scenario())


def test_the_other_wire_reports_in_its_last_usage_or_its_header() -> None:
    begin = event({"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1, "cost": 0.1}}})
    block = event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "hi"}})
    stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    last = event({**stop, "usage": {"output_tokens": 2, "cost": 0.25}})
    silent = event({**stop, "usage": {"output_tokens": 2}})
    end = event({"type": "message_stop"})
    tokens = {"input_tokens": 3, "output_tokens": 2}

    async def scenario() -> None:
        for deed, is_stream, expected in (
            (stream(begin, block, last, end), True, 250_000_000),
            (stream(begin, block, silent, end), True, 100_000_000),
            (status(200, {**MESSAGE, "usage": {**tokens, "cost": 0.25}}), False, 250_000_000),
            (status(200, {**MESSAGE, "usage": tokens}, x_litellm_response_cost="0.5"), False, 500_000_000),
        ):
            usage, _ = await usage_of(deed, wants_stream=is_stream, profile="anthropic")
            assert (usage.reported_nano, usage.completion_tokens) == (expected, 2)

    play(scenario())
