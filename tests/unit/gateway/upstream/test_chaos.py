"""Upstreams that misbehave on a real socket: who is asked next, and what the caller gets, once."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec
import pytest

from headrace.core.delta import FinishReason
from headrace.core.errors import (
    CredentialsExhausted,
    DeadlineExpired,
    HeadraceError,
    Overloaded,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from headrace.core.upstream_settings import FailoverSettings
from headrace.core.upstream_status import BreakerState
from tests.patient_loop import LoopClock
from tests.unit.gateway.upstream.scripted import (
    DONE,
    QUICK,
    USAGE,
    Deed,
    ScriptedServer,
    a_request,
    answer,
    chunk,
    deltas_of,
    event,
    fleet_of,
    hang_up,
    head,
    play,
    silence,
    status,
    stream,
    text_of,
    whole,
)


def closed_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}/v1"


async def redirect(reader: Any, writer: Any) -> None:
    writer.write(head(302, location="http://127.0.0.1:1/", content_length="0"))


async def no_http(reader: Any, writer: Any) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    raise ConnectionError


HELD_BACK = [
    pytest.param(hang_up, id="connection closed before the head"),
    pytest.param(silence, id="no head in time"),
    pytest.param(status(500), id="500"),
    pytest.param(status(503, retry_after="0"), id="503 with Retry-After"),
    pytest.param(status(429, retry_after="1"), id="429 with Retry-After"),
    pytest.param(status(429), id="429 without"),
    pytest.param(status(401), id="401"),
    pytest.param(status(402), id="402"),
    pytest.param(status(404), id="404"),
    pytest.param(redirect, id="redirect"),
    pytest.param(no_http, id="another protocol"),
    pytest.param(stream(), id="empty stream"),
    pytest.param(stream(stall=True), id="stall before the first event"),
    pytest.param(stream(b": ping\n\n", stall=True), id="comments and then nothing"),
    pytest.param(stream(chunk(role="assistant"), stall=True), id="a role and then nothing"),
    pytest.param(stream(event({"error": {"message": "boom", "code": 500}})), id="error in a 200"),
    pytest.param(stream(event({"object": "error", "message": "boom", "code": 503})), id="error in a 200, flat"),
    pytest.param(stream(chunk(role="assistant"), event({"error": "boom"})), id="error after the role"),
    pytest.param(stream(b"data: {]\n\n"), id="no JSON"),
    pytest.param(stream(b"data: " + b"x" * 5000 + b"\n\n"), id="giant event"),
    pytest.param(stream(b"x" * 5000), id="giant line"),
    pytest.param(stream(event({"choices": [{"index": 7, "delta": {"content": "x"}}]})), id="a choice nobody asked for"),
    pytest.param(stream(DONE), id="[DONE] and no answer"),
    pytest.param(stream(chunk(finish="abort"), DONE), id="aborted there"),
    pytest.param(status(200, "<html>"), id="no object in a 200"),
    pytest.param(status(200, {"choices": []}), id="no choice in a 200"),
    pytest.param(status(200, {"error": {"message": "boom"}}), id="error as a 200 body"),
]


@pytest.mark.parametrize("deed", HELD_BACK)
@pytest.mark.parametrize("wants_stream", [True, False], ids=["stream", "whole"])
def test_failure_before_the_first_token_is_met_by_another_upstream(deed: Deed, wants_stream: bool) -> None:
    async def run() -> None:
        good = answer("Hel", "lo") if wants_stream else whole("Hello")
        async with ScriptedServer([deed]) as bad, ScriptedServer([good]) as well:
            limits = {"first_byte_s": 0.2, "idle_s": 0.2, "total_s": 60.0 if wants_stream else 0.3}
            fleet = fleet_of(bad.url, well.url, max_event_bytes=4096, **limits)
            for _ in range(4):  # either may be asked first
                deltas = await deltas_of(fleet, a_request(wants_stream=wants_stream))
                assert text_of(deltas) == "Hello"
                assert [delta.finish for delta in deltas if delta.finish is not None] == [FinishReason.STOP]
                assert deltas[-1].usage is not None
                assert deltas[-1].usage.completion_tokens == 2
            assert len(bad.calls) >= 1

    play(run())


def test_refused_connections_are_met_by_another_upstream() -> None:
    async def run() -> None:
        async with ScriptedServer([answer("ok")]) as well:
            fleet = fleet_of(closed_port(), well.url)
            assert all([text_of(await deltas_of(fleet, a_request())) == "ok" for _ in range(4)])

    play(run())


BROKEN_LATER = [
    pytest.param(stream(chunk("Hel"), stall=True), id="stall"),
    pytest.param(stream(chunk("Hel"), abort=True), id="broken connection"),
    pytest.param(stream(chunk("Hel")), id="end without an ending"),
    pytest.param(stream(chunk("Hel"), DONE), id="[DONE] without an ending"),
    pytest.param(stream(chunk("Hel"), event({"error": {"message": "boom"}})), id="error event"),
    pytest.param(stream(chunk("Hel"), b"data: {garbage\n\n"), id="garbage"),
    pytest.param(stream(chunk("Hel"), b"y" * 5000), id="giant line"),
    pytest.param(stream(chunk("Hel"), chunk("lo")[:30]), id="truncated event"),
    pytest.param(stream(chunk("Hel") + b"data: {garbage\n\n"), id="garbage in one read with words"),
]


@pytest.mark.parametrize("deed", BROKEN_LATER)
def test_failure_after_the_first_token_ends_the_answer_once_and_asks_nobody_else(deed: Deed) -> None:
    async def run() -> None:
        async with ScriptedServer([deed]) as bad, ScriptedServer([deed]) as other:
            fleet = fleet_of(bad.url, other.url, max_event_bytes=4096, idle_s=0.3)
            deltas = await deltas_of(fleet, a_request())
            assert text_of(deltas) == "Hel"
            assert [delta.finish for delta in deltas if delta.finish is not None] == [FinishReason.ERROR]
            assert deltas[-1].usage is not None
            assert deltas[-1].usage.is_estimate
            assert len(bad.calls) + len(other.calls) == 1

    play(run())


@pytest.mark.parametrize(
    "pieces",
    [
        [chunk("Hel"), chunk("lo"), chunk(finish="stop"), USAGE, DONE, DONE, chunk("again")],
        [chunk("Hel"), chunk("lo"), chunk(finish="stop"), chunk("again"), chunk(finish="stop"), USAGE, DONE],
        [chunk("Hel"), chunk("lo", finish="stop"), USAGE],
        [chunk("Hel") + chunk("lo")[:20], chunk("lo")[20:] + chunk(finish="stop") + USAGE[:9], USAGE[9:] + DONE],
        [b": ping\r\n\r\n", chunk("Hel").replace(b"\n", b"\r\n"), chunk("lo"), chunk(finish="stop"), USAGE, DONE],
    ],
    ids=["done twice", "said again after its end", "no [DONE]", "split anywhere", "CRLF and comments"],
)
def test_odd_streams_give_the_answer_once(pieces: list[bytes]) -> None:
    async def run() -> None:
        async with ScriptedServer([stream(*pieces)]) as server:
            fleet = fleet_of(server.url)
            deltas = await deltas_of(fleet, a_request())
            assert text_of(deltas) == "Hello"
            assert [delta.finish for delta in deltas if delta.finish is not None] == [FinishReason.STOP]
            assert deltas[-1].usage is not None
            assert (deltas[-1].usage.prompt_tokens, deltas[-1].usage.is_estimate) == (3, False)

    play(run())


@pytest.mark.parametrize(
    ("deed", "error", "said"),
    [
        (status(500), UpstreamFailed, "500"),
        (status(400, {"error": {"message": "temperature is 9"}}), UpstreamRefused, "temperature is 9"),
        (status(429, retry_after="7"), Overloaded, "429"),
        (status(401, {"error": {"message": "bad key sk-abc***"}}), CredentialsExhausted, "renew upstreams.u0.api_key"),
        (status(404, {"error": {"message": "no such model"}}), UpstreamRefused, "no such model"),
        (silence, UpstreamTimeout, "first_byte_s"),
    ],
)
def test_the_last_failure_is_told_as_what_it_is(deed: Deed, error: type[HeadraceError], said: str) -> None:
    async def run() -> None:
        async with ScriptedServer([deed]) as server:
            fleet = fleet_of(server.url, policy=msgspec.structs.replace(QUICK, retry_s=0.0), first_byte_s=0.2)
            with pytest.raises(error) as caught:
                await deltas_of(fleet, a_request())
            assert said in caught.value.message
            assert "sk-abc" not in caught.value.message
            assert "sk-abc" not in str(fleet.status())

    play(run())


def test_rejected_keys_are_named_to_caller_and_operator_beside_whatever_else_is_wrong(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One upstream rejects its key, the other is gone: 503 says both, and no secret and no address."""
    secret, gone = "sk-0123456789", closed_port()
    message = "its operator has to renew upstreams.u0.api_key"

    async def run() -> None:
        async with ScriptedServer([status(401, {"error": {"message": f"no such key {secret}"}})]) as server:
            policy = FailoverSettings(retry_s=0.0, retry_ratio=1.0, breaker_min_calls=1)
            fleet = fleet_of(server.url, gone, policy=policy, api_key=secret)
            said = []
            for _ in range(4):
                with pytest.raises(HeadraceError) as caught:
                    await deltas_of(fleet, a_request())
                said.append((caught.value.http_status, caught.value.message))
            assert said[-1][0] == 503
            assert message in said[-1][1]
            state = fleet.status()[0]
            assert (state.dead_keys, state.key_problem is not None and message in state.key_problem) == (1, True)
            told = f"{said} {fleet.status()} {caplog.text}".replace(gone, "")  # the operator sees it in the status
            assert message in caplog.text
            assert secret not in told
            assert "127.0.0.1" not in str(said)

    play(run())


def test_an_upstream_that_wants_a_key_where_none_is_configured_says_so() -> None:
    async def run() -> None:
        async with ScriptedServer([status(401)]) as server:
            fleet = fleet_of(server.url)
            for _ in range(2):
                with pytest.raises(CredentialsExhausted) as caught:
                    await deltas_of(fleet, a_request())
            assert "none is configured" in caught.value.message

    play(run())


def test_a_request_at_fault_is_not_tried_again_anywhere() -> None:
    async def run() -> None:
        async with ScriptedServer([status(422)]) as one, ScriptedServer([status(422)]) as two:
            fleet = fleet_of(one.url, two.url)
            with pytest.raises(UpstreamRefused) as caught:
                await deltas_of(fleet, a_request())
            assert caught.value.http_status == 422
            assert len(one.calls) + len(two.calls) == 1

    play(run())


def test_a_passing_fault_of_the_only_upstream_is_tried_again_there() -> None:
    async def run() -> None:
        async with ScriptedServer([status(500), hang_up, answer("ok")]) as server:
            fleet = fleet_of(server.url)
            assert text_of(await deltas_of(fleet, a_request())) == "ok"
            assert len(server.calls) == 3
            assert fleet.status()[0].retries == 2

    play(run())


def test_a_throttled_only_upstream_is_tried_again_when_it_said() -> None:
    async def run() -> None:
        async with ScriptedServer([status(429, retry_after_ms="120"), answer("ok")]) as server:
            fleet = fleet_of(server.url)
            start_s = LoopClock().now()
            assert text_of(await deltas_of(fleet, a_request())) == "ok"
            assert LoopClock().now() - start_s >= 0.12

    play(run())


def test_a_rejected_key_gives_way_to_the_next_at_once() -> None:
    async def run() -> None:
        async with ScriptedServer([status(401), answer("ok")]) as server:
            fleet = fleet_of(server.url, api_key=["env:OLD", "env:NEW"])
            for _ in range(2):
                assert text_of(await deltas_of(fleet, a_request())) == "ok"
            sent = [call.headers["authorization"] for call in server.calls]
            assert sent == ["Bearer env:OLD", "Bearer env:NEW", "Bearer env:NEW"]
            assert (fleet.status()[0].keys, fleet.status()[0].dead_keys) == (2, 1)
            assert fleet.status()[0].breaker is BreakerState.CLOSED

    play(run())


def test_an_outage_of_the_only_upstream_is_told_at_once_after_the_first_failures() -> None:
    async def run() -> None:
        policy = msgspec.structs.replace(QUICK, breaker_open_s=30.0)
        fleet = fleet_of(closed_port(), policy=policy)
        with pytest.raises(HeadraceError):
            await deltas_of(fleet, a_request())
        assert fleet.status()[0].breaker is BreakerState.OPEN
        start_s = LoopClock().now()
        for _ in range(20):
            with pytest.raises(UpstreamUnavailable) as caught:
                await deltas_of(fleet, a_request())
            assert caught.value.retry_after_s is not None
            assert 0 < caught.value.retry_after_s <= 30
        assert LoopClock().now() == start_s

    play(run())


def test_an_upstream_that_is_back_is_found_by_one_probe() -> None:
    async def run() -> None:
        async with ScriptedServer([*[status(500)] * 5, answer("back")]) as server:
            policy = msgspec.structs.replace(QUICK, retry_s=0.0, breaker_open_s=0.05)
            fleet = fleet_of(server.url, policy=policy)
            for _ in range(5):
                with pytest.raises(UpstreamFailed):
                    await deltas_of(fleet, a_request())
            assert fleet.status()[0].breaker is BreakerState.OPEN
            while fleet.status()[0].breaker is BreakerState.OPEN:
                await asyncio.sleep(0.01)
            together = await asyncio.gather(*(deltas_of(fleet, a_request()) for _ in range(5)), return_exceptions=True)
            assert sum(isinstance(result, list) for result in together) == 1
            assert len(server.calls) == 6
            assert text_of(await deltas_of(fleet, a_request())) == "back"
            assert fleet.status()[0].breaker is BreakerState.CLOSED

    play(run())


def test_a_probe_that_its_caller_gives_up_makes_room_for_the_next() -> None:
    async def run() -> None:
        async with ScriptedServer([*[status(500)] * 5, silence, answer("back")]) as server:
            policy = msgspec.structs.replace(QUICK, retry_s=0.0, breaker_open_s=0.05)
            fleet = fleet_of(server.url, policy=policy, first_byte_s=30.0)
            for _ in range(5):
                with pytest.raises(UpstreamFailed):
                    await deltas_of(fleet, a_request())
            while fleet.status()[0].breaker is BreakerState.OPEN:
                await asyncio.sleep(0.01)
            probe = asyncio.ensure_future(deltas_of(fleet, a_request()))
            while len(server.calls) < 6:
                await asyncio.sleep(0.01)
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
            assert text_of(await deltas_of(fleet, a_request())) == "back"

    play(run())


def test_retries_of_all_requests_together_are_bounded() -> None:
    async def run() -> None:
        async with ScriptedServer([status(500)]) as server:
            policy = msgspec.structs.replace(QUICK, retry_ratio=0.1, breaker_min_calls=1000, backoff_s=0.001)
            fleet = fleet_of(server.url, policy=policy)
            for _ in range(50):
                with pytest.raises(UpstreamFailed):
                    await deltas_of(fleet, a_request())
            assert len(server.calls) <= 50 + 10 + 50 * 0.1 + 1

    play(run())


def test_a_caller_that_leaves_ends_the_work_at_the_upstream() -> None:
    async def run() -> None:
        async with ScriptedServer([stream(chunk("Hel"), stall=True)]) as server:
            fleet = fleet_of(server.url, idle_s=30.0)
            deltas = fleet.pool("m").generate(a_request())
            assert (await anext(deltas)).text == "Hel"
            assert fleet.status()[0].in_flight == 1
            await deltas.aclose()  # type: ignore[attr-defined]
            await asyncio.wait_for(server.closed.wait(), 5)
            assert (fleet.status()[0].in_flight, fleet.status()[0].outcomes["aborted"]) == (0, 1)

    play(run())


def test_a_full_upstream_refuses_without_being_asked() -> None:
    async def run() -> None:
        async with ScriptedServer([stream(chunk("Hel"), stall=True)]) as server:
            fleet = fleet_of(server.url, idle_s=30.0, max_parallel=1)
            first = fleet.pool("m").generate(a_request())
            await anext(first)
            with pytest.raises(Overloaded, match="max_parallel"):
                await deltas_of(fleet, a_request())
            assert len(server.calls) == 1
            await first.aclose()  # type: ignore[attr-defined]

    play(run())


def test_hedging_asks_a_second_upstream_when_the_first_is_slow() -> None:
    async def run() -> None:
        async with ScriptedServer([silence]) as slow, ScriptedServer([answer("fast")]) as quick:
            policy = msgspec.structs.replace(QUICK, hedge_after_s=0.02)
            fleet = fleet_of(slow.url, quick.url, policy=policy, first_byte_s=30.0)
            texts = [text_of(await deltas_of(fleet, a_request())) for _ in range(6)]
            assert texts == ["fast"] * 6
            asked_first = len(slow.calls)
            assert asked_first >= 1
            assert sum(member.hedges for member in fleet.status()) == asked_first
            assert [member.in_flight for member in fleet.status()] == [0, 0]

    play(run())


def test_connections_are_used_again() -> None:
    async def run() -> None:
        async with ScriptedServer([answer("ok")]) as server:
            fleet = fleet_of(server.url)
            for _ in range(5):
                await deltas_of(fleet, a_request())
            assert len(server.calls) == 5
            assert server.num_connections == 1

    play(run())


def test_an_upstream_that_does_not_count_gets_an_estimate_that_says_so() -> None:
    async def run() -> None:
        async with ScriptedServer([stream(chunk("12345678"), chunk(finish="stop"), DONE)]) as server:
            fleet = fleet_of(server.url)
            usage = (await deltas_of(fleet, a_request(text="x" * 40)))[-1].usage
            assert usage is not None
            assert (usage.prompt_tokens, usage.completion_tokens, usage.is_estimate) == (10, 2, True)

    play(run())


def test_a_usage_of_zero_is_believed() -> None:
    async def run() -> None:
        zero = event({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})
        async with ScriptedServer([stream(chunk("12345678"), chunk(finish="stop"), zero, DONE)]) as server:
            fleet = fleet_of(server.url)
            usage = (await deltas_of(fleet, a_request()))[-1].usage
            assert usage is not None
            assert (usage.prompt_tokens, usage.completion_tokens, usage.is_estimate) == (0, 0, False)

    play(run())


def test_a_deadline_before_the_first_token_ends_the_request() -> None:
    async def run() -> None:
        async with ScriptedServer([silence]) as server:
            fleet = fleet_of(server.url)
            request = msgspec.structs.replace(a_request(), arrival_s=LoopClock().now(), deadline_s=0.1)
            with pytest.raises(DeadlineExpired, match="100 ms"):
                await deltas_of(fleet, request)
            await asyncio.wait_for(server.closed.wait(), 5)
            assert fleet.status()[0].in_flight == 0

    play(run())
