"""Streams that can be resumed, keys that make a call happen once, ends by id."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from headrace.api import Calls, RecordingLimits, Recordings
from headrace.core.caller import Caller
from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import Overloaded
from tests.unit.api.asgi import Connection

BODY = {"prompt": "q", "stream": True}
PATH = "/v1/completions"


class Source:
    """Says 0, 1, 2 … as it is told to; counts how often it was asked, and says when it was closed."""

    def __init__(self, length: int = 12) -> None:
        self.num_calls = 0
        self.num_said = 0
        self.closed = asyncio.Event()
        self._length = length
        self._allowed = asyncio.Semaphore(0)

    def let(self, num_deltas: int = 1000) -> None:
        for _ in range(num_deltas):
            self._allowed.release()

    async def generate(self, request: Any) -> Any:
        self.num_calls += 1
        try:
            for i in range(self._length):
                await self._allowed.acquire()
                self.num_said += 1
                is_last = i == self._length - 1
                yield Delta(
                    text=f"{i} ",
                    token_ids=(i,),
                    finish=FinishReason.LENGTH if is_last else None,
                    usage=Usage(prompt_tokens=1, completion_tokens=self._length) if is_last else None,
                )
        finally:
            self.closed.set()


class Doorman:
    """Knows callers by what they send."""

    async def identify(self, path: str, headers: Any) -> Caller:
        return Caller(key_id=headers.get("authorization", ""))


WHOLE = "".join(f"{i} " for i in range(12))
Case = Callable[[Any, Source], Any]


@pytest.fixture
def drive(make_api: Any) -> Callable[..., None]:
    """Run a case against an application over a source."""

    def run(case: Case, source_length: int = 12, **limits: Any) -> None:
        async def main() -> None:
            source = Source(source_length)
            api = make_api(source, recordings=Recordings(RecordingLimits(**limits)), gatekeeper=Doorman())
            async with asyncio.timeout(60):
                await case(api.app, source)

        asyncio.run(main())

    return run


def post(app: Any, body: Any = BODY, **headers: str) -> Connection:
    return Connection(app).open("POST", PATH, body, {k.replace("_", "-"): v for k, v in headers.items()})


def resume(app: Any, request_id: str, last: int | str | None = None, **headers: str) -> Connection:
    sent = {k.replace("_", "-"): v for k, v in headers.items()}
    if last is not None:
        sent["last-event-id"] = str(last)
    return Connection(app).open("GET", f"/v1/requests/{request_id}/events", None, sent)


def error(connection: Connection) -> tuple[int, str]:
    return connection.status, json.loads(connection.body)["error"]["code"]


def test_without_a_wish_a_stream_has_no_ids_and_ends_with_its_connection(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let(2)
        first = post(app, x_request_id="r1")
        await first.until(2)
        await first.leave()
        assert [number for number, _ in first.events] == [None, None]
        assert source.closed.is_set()
        assert error(await resume(app, "r1", 1).ended()) == (404, "request_not_found")

    drive(case)


def test_a_lost_stream_goes_on_where_the_reader_was(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let(3)
        first = post(app, x_request_id="r1", x_resume_grace="30")
        await first.until(3)
        await first.leave()
        assert [number for number, _ in first.events] == [1, 2, 3]
        source.let()
        for spelled in ("r1", "cmpl-r1"):
            second = await resume(app, spelled, 2).ended()
            assert [number for number, _ in second.events] == list(range(3, 14))
            assert second.events[0] == first.events[2]
            assert second.events[-1][1] == "[DONE]"
            assert first.text[:4] + second.text == WHOLE
        assert (await resume(app, "r1").ended()).text == WHOLE
        assert (await resume(app, "r1", 13).ended()).status == 204
        assert source.num_calls == 1

    drive(case)


def test_a_server_that_drains_begins_no_calls_and_waits_for_those_that_it_has(make_api: Any) -> None:
    async def main() -> None:
        source, calls, recordings = Source(), Calls(), Recordings()
        app = make_api(source, calls=calls, recordings=recordings).app
        source.let(1)
        first = post(app)
        await first.until(1)
        draining = asyncio.create_task(calls.drain(20.0))
        await asyncio.sleep(0)
        for headers in ({}, {"x_resume_grace": "5"}, {"idempotency_key": "k"}):
            late = await post(app, **headers).ended()
            assert error(late) == (503, "server_draining")
            assert late.headers["retry-after"] == "5"
        assert (source.num_calls, len(recordings), draining.done()) == (1, 0, False)
        source.let()
        await first.ended()
        await draining
        assert first.text == WHOLE

    asyncio.run(main())


def test_the_engine_hears_for_how_long_readers_may_be_away(make_api: Any) -> None:
    api = make_api()
    for grace_s in ("0", "7"):
        api.call("POST", PATH, json={"prompt": "q"}, headers={"x-resume-grace": grace_s})
    assert [request.grace_s for request in api.upstream.requests] == [0.0, 7.0]


def test_nobody_coming_back_ends_the_work_and_the_id_is_gone(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let(1)
        first = post(app, x_request_id="r1", x_resume_grace="0.02")
        await first.until(1)
        await first.leave()
        await source.closed.wait()
        await asyncio.sleep(0)
        assert error(await resume(app, "r1", 1).ended()) == (410, "stream_expired")
        assert error(await resume(app, "r2", 1).ended()) == (404, "request_not_found")

    drive(case)


def test_another_key_finds_nothing(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let()
        mine = {"authorization": "Bearer mine"}
        await post(app, x_request_id="r1", x_resume_grace="30", idempotency_key="k", **mine).ended()
        for headers in ({}, {"authorization": "Bearer yours"}):
            assert error(await resume(app, "r1", 1, **headers).ended()) == (404, "request_not_found")
            other = await post(app, x_request_id="r1", idempotency_key="k", **headers).ended()
            assert "idempotent-replayed" not in other.headers
        assert source.num_calls == 3
        assert (await resume(app, "r1", 1, **mine).ended()).status == 200

    drive(case)


def test_a_key_makes_a_stream_once_also_while_it_runs(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let(3)
        first = post(app, idempotency_key="k")
        await first.until(3)
        second = post(app, idempotency_key="k")
        third = post(app, idempotency_key="k", last_event_id="2")
        await second.until(3)
        source.let()
        for connection in (first, second):
            assert (await connection.ended()).text == WHOLE
        assert (await third.ended()).text == WHOLE[4:]
        assert (await post(app, idempotency_key="k").ended()).text == WHOLE
        assert source.num_calls == 1
        assert "idempotent-replayed" not in first.headers
        assert second.headers["idempotent-replayed"] == "true"

    drive(case)


def test_a_key_makes_a_whole_answer_once(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        body = {"prompt": "q"}
        connections = [post(app, body, idempotency_key="k") for _ in range(3)]
        await asyncio.sleep(0)
        source.let()
        bodies = {(await connection.ended()).body for connection in connections}
        bodies.add((await post(app, body, idempotency_key="k").ended()).body)
        assert len(bodies) == 1
        assert json.loads(bodies.pop())["choices"][0]["text"] == WHOLE
        assert source.num_calls == 1

    drive(case)


def test_a_key_with_another_body_is_refused(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let()
        await post(app, idempotency_key="k").ended()
        for body in ({"prompt": "other", "stream": True}, {"prompt": "q"}):
            assert error(await post(app, body, idempotency_key="k").ended()) == (422, "idempotency_key_reused")
        reordered = {"stream": True, "prompt": "q"}
        assert (await post(app, reordered, idempotency_key="k").ended()).status == 200

    drive(case)


def test_a_refused_call_frees_its_key(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let()
        bad = {"prompt": "q", "temperature": -1}
        for _ in range(2):
            assert (await post(app, bad, idempotency_key="k").ended()).status == 400
        assert (await post(app, idempotency_key="k").ended()).text == WHOLE

    drive(case)


def test_a_key_without_grace_ends_with_its_last_connection(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let(1)
        first = post(app, idempotency_key="k")
        await first.until(1)
        await first.leave()
        await source.closed.wait()
        source.let()
        assert (await post(app, idempotency_key="k").ended()).text == WHOLE
        assert source.num_calls == 2

    drive(case)


def test_a_full_buffer_stops_the_source_and_forgets_what_was_read(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let()
        reader = Connection(app, stall=asyncio.Event())
        reader.open("POST", PATH, BODY, {"x-request-id": "r1", "x-resume-grace": "30"})
        await reader.until(1)
        for _ in range(50):
            await asyncio.sleep(0)
        assert source.num_said <= 6  # four kept, one on its way, one read
        assert reader.stall is not None
        reader.stall.set()
        assert (await reader.ended()).text == WHOLE
        assert error(await resume(app, "r1", 3).ended()) == (410, "stream_expired")
        assert [number for number, _ in (await resume(app, "r1", 10).ended()).events] == [11, 12, 13]

    drive(case, max_events=4)


def test_bytes_are_bounded_too(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let()
        first = await post(app, x_request_id="r1", x_resume_grace="30").ended()
        assert first.text == WHOLE
        assert error(await resume(app, "r1", 1).ended()) == (410, "stream_expired")
        assert len((await resume(app, "r1", 12).ended()).body) < 600

    drive(case, max_bytes=600)


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"x_resume_grace": "soon"}, "X-Resume-Grace"),
        ({"x_resume_grace": "nan"}, "X-Resume-Grace"),
        ({"x_resume_grace": "-1"}, "X-Resume-Grace"),
        ({"x_resume_grace": "61"}, "X-Resume-Grace"),
        ({"idempotency_key": ""}, "Idempotency-Key"),
        ({"idempotency_key": "k" * 256}, "Idempotency-Key"),
    ],
)
def test_absurd_wishes_are_refused_by_name(drive: Any, headers: dict[str, str], param: str) -> None:
    async def case(app: Any, source: Source) -> None:
        refused = await post(app, **headers).ended()
        assert refused.status == 400
        assert json.loads(refused.body)["error"]["param"] == param
        assert not source.num_calls

    drive(case)


def test_absurd_event_ids_are_refused_by_name(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let()
        await post(app, x_request_id="r1", x_resume_grace="30").ended()
        for last in ("99", "-1", "1.5", "x" * 200):
            refused = await resume(app, "r1", last).ended()
            assert refused.status == 400
            assert json.loads(refused.body)["error"]["param"] == "Last-Event-ID"
        assert (await resume(app, "r1", 12).ended()).events == [(13, "[DONE]")]

    drive(case)


def test_an_id_in_use_is_refused_and_places_are_bounded(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let(2)
        first = post(app, x_request_id="r1", x_resume_grace="30")
        await first.until(2)
        assert error(await post(app, x_request_id="r1", x_resume_grace="30").ended()) == (409, "request_id_taken")
        full = await post(app, x_request_id="r2", x_resume_grace="30").ended()
        assert error(full) == (429, Overloaded.code)
        assert "resume.max_streams" in full.body.decode()
        source.let()
        await first.ended()
        assert (await post(app, x_request_id="r2", x_resume_grace="30").ended()).text == WHOLE
        assert error(await resume(app, "r1", 1).ended()) == (410, "stream_expired")

    drive(case, max_streams=1)


def test_an_end_by_id_is_exact_and_can_be_repeated(drive: Any) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let(1)
        one = post(app, x_request_id="req-1")
        await one.until(1)
        ten = post(app, x_request_id="req-10")
        while source.num_calls < 2:
            await asyncio.sleep(0)
        source.let(2)
        await ten.until(1)
        for method, path in (
            ("DELETE", "/v1/requests/req-1"),
            ("POST", "/v1/requests/req-1/cancel"),
            ("DELETE", "/v1/requests/cmpl-req-1"),
        ):
            told = await Connection(app).open(method, path).ended()
            assert (told.status, json.loads(told.body)["status"]) == (200, "cancelled")
        await one.ended()
        assert "request_cancelled" in one.events[-1][1]
        source.let()
        assert (await ten.ended()).text == WHOLE
        told = await Connection(app).open("DELETE", "/v1/requests/req-10").ended()
        assert json.loads(told.body)["status"] == "finished"
        for wrong in ("req", "req-100"):
            assert error(await Connection(app).open("DELETE", f"/v1/requests/{wrong}").ended())[0] == 404

    drive(case)


@pytest.mark.parametrize("headers", [{}, {"x_resume_grace": "30"}])
def test_a_whole_answer_that_is_ended_by_id_says_so(drive: Any, headers: dict[str, str]) -> None:
    async def case(app: Any, source: Source) -> None:
        source.let(1)
        call = post(app, {"prompt": "q"}, x_request_id="r1", **headers)
        while not source.num_said:
            await asyncio.sleep(0)
        stranger = {"authorization": "Bearer other"}
        assert (await Connection(app).open("DELETE", "/v1/requests/r1", None, stranger).ended()).status == 404
        await Connection(app).open("DELETE", "/v1/requests/r1").ended()
        assert error(await call.ended()) == (409, "request_cancelled")
        assert source.closed.is_set()

    drive(case)


def test_a_server_that_stops_ends_what_nobody_reads(make_api: Any) -> None:
    async def main() -> None:
        source, recordings = Source(), Recordings(RecordingLimits())
        app = make_api(source, recordings=recordings).app
        source.let(1)
        left = post(app, x_request_id="a", x_resume_grace="30")
        await left.until(1)
        await left.leave()
        read = post(app, x_request_id="b", x_resume_grace="30")
        while source.num_calls < 2:
            await asyncio.sleep(0)
        recordings.drop_unread()
        assert len(recordings) == 1
        await source.closed.wait()
        source.let()
        assert (await read.ended()).text == WHOLE

    asyncio.run(main())
