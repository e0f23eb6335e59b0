"""What goes over the wire, write by write: a transport that remembers stands for the socket."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from headrace.api import ON_DISCONNECT, ApiState, Models, ServedModel, build_app
from headrace.app.http_protocol import Connection
from headrace.core.health import HealthState, ServerHealth
from headrace.testing import ByteTokenizer, EchoUpstream, VirtualClock

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Wire(asyncio.Transport):
    """Remembers every write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False
        self.is_paused = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


def connected(app: Any, **settings: Any) -> tuple[Connection, Wire]:
    config = Config(app, ws="none", lifespan="off", log_config=None, access_log=False, **settings)
    connection, wire = Connection(config, ServerState(), {}), Wire()
    connection.connection_made(wire)
    return connection, wire


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0)


def begins(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def whole(scope: Any, receive: Any, send: Any) -> None:
    await send(begins((b"content-length", b"%d" % len(scope["path"]))))
    await send(body(scope["path"].encode()))


def test_a_whole_answer_is_one_write() -> None:
    async def main() -> None:
        connection, wire = connected(whole)
        for num_answers in (1, 2):
            connection.data_received(GET)
            await until(lambda n=num_answers: len(wire.writes) >= n)
            await asyncio.sleep(0)
        assert wire.writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n/"] * 2

    asyncio.run(main())


def test_the_head_of_a_stream_does_not_wait_for_its_first_piece() -> None:
    async def main() -> None:
        first = asyncio.Event()

        async def stream(scope: Any, receive: Any, send: Any) -> None:
            await send(begins())
            await first.wait()
            for piece in (b"one", b"", b"three"):
                await send(body(piece, more=True))
            await send(body(b""))

        connection, wire = connected(stream)
        connection.data_received(GET)
        await until(lambda: wire.writes)
        assert wire.writes == [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]
        first.set()
        await until(lambda: connection.cycle.response_complete)
        assert wire.writes[1:] == [b"3\r\none\r\n", b"5\r\nthree\r\n", b"0\r\n\r\n"]

    asyncio.run(main())


def test_answers_leave_in_the_order_of_the_requests_of_a_pipeline() -> None:
    async def main() -> None:
        connection, wire = connected(whole)
        connection.data_received(b"".join(GET.replace(b"/ ", b"/%d%%20 " % i) for i in range(3)))
        await until(lambda: len(wire.writes) == 3)
        assert [write[-3:] for write in wire.writes] == [b"/0 ", b"/1 ", b"/2 "]
        assert not wire.is_paused

    asyncio.run(main())


def test_an_answer_waits_while_the_client_takes_nothing() -> None:
    async def main() -> None:
        connection, wire = connected(whole)
        connection.pause_writing()
        connection.data_received(GET)
        for _ in range(10):
            await asyncio.sleep(0)
        assert wire.writes == []
        connection.resume_writing()
        await until(lambda: wire.writes)
        assert len(wire.writes) == 1

    asyncio.run(main())


def test_answers_without_a_body_are_heads_alone() -> None:
    async def main() -> None:
        async def none(scope: Any, receive: Any, send: Any) -> None:
            await send(begins(status=204))
            await send(body(b""))

        connection, wire = connected(whole)
        connection.data_received(GET.replace(b"GET", b"HEAD"))
        await until(lambda: wire.writes)
        assert wire.writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"]
        connection, wire = connected(none)
        connection.data_received(GET)
        await until(lambda: wire.writes)
        assert wire.writes == [b"HTTP/1.1 204 No Content\r\n\r\n"]

    asyncio.run(main())


def test_a_connection_ends_where_either_side_says_so() -> None:
    async def main() -> None:
        async def closes(scope: Any, receive: Any, send: Any) -> None:
            await send(begins((b"connection", b"Close"), (b"content-length", b"1")))
            await send(body(b"x"))

        connection, wire = connected(closes)
        connection.data_received(GET)
        await until(lambda: wire.is_closed)
        assert wire.writes == [b"HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 1\r\n\r\nx"]
        for request in (GET.replace(b"1.1", b"1.0"), GET.replace(b"host: x", b"host: x\r\nconnection: close")):
            connection, wire = connected(whole)
            connection.data_received(request)
            await until(lambda w=wire: w.is_closed)
            assert wire.writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\n/"]

    asyncio.run(main())


@pytest.mark.parametrize(
    "messages",
    [
        [begins((b"x", b"a\r\nset-cookie: b"))],
        [begins((b"x\r\ny", b"a"))],
        [begins((b"content-length", b"1")), body(b"xy")],
        [begins((b"content-length", b"3")), body(b"xy")],
        [begins(), begins()],
    ],
)
def test_what_no_answer_may_be_ends_the_connection(messages: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> bytes:
        async def wrong(scope: Any, receive: Any, send: Any) -> None:
            for message in messages:
                await send(message)

        connection, wire = connected(wrong)
        connection.data_received(GET)
        await until(lambda: wire.is_closed)
        await asyncio.sleep(0)
        return b"".join(wire.writes)

    assert b"set-cookie" not in asyncio.run(main())
    assert "Exception in ASGI application" in caplog.text


def test_a_client_that_goes_away_is_told_of_to_the_call_that_is_being_answered() -> None:
    async def main() -> None:
        told: list[str] = []

        async def waits(scope: Any, receive: Any, send: Any) -> None:
            scope["extensions"][ON_DISCONNECT](lambda: told.append(scope["path"]))
            while (await receive())["type"] != "http.disconnect":
                pass
            scope["extensions"][ON_DISCONNECT](lambda: told.append("late " + scope["path"]))

        for num_behind in (0, 1):
            connection, _ = connected(waits)
            connection.data_received(GET * (1 + num_behind))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            connection.connection_lost(None)
            await until(lambda: len(told) == 2)
            assert told == ["/", "late /"]
            told.clear()

    asyncio.run(main())


def test_a_watch_that_was_taken_back_hears_nothing() -> None:
    async def main() -> None:
        told: list[str] = []

        async def waits(scope: Any, receive: Any, send: Any) -> None:
            scope["extensions"][ON_DISCONNECT](lambda: told.append("gone"))()
            await asyncio.Event().wait()

        connection, _ = connected(waits)
        connection.data_received(GET)
        await asyncio.sleep(0)
        connection.connection_lost(None)
        await asyncio.sleep(0)
        assert told == []
        for task in connection.tasks:
            task.cancel()
        await asyncio.gather(*connection.tasks, return_exceptions=True)

    asyncio.run(main())


def test_an_idle_connection_is_closed_in_time_and_one_at_work_is_not() -> None:
    async def main() -> None:
        ready = asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await ready.wait()
            await whole(scope, receive, send)

        connection, wire = connected(slow, timeout_keep_alive=1000)
        connection.data_received(GET)
        connection.timeout_keep_alive_handler()  # of an earlier idle time
        ready.set()
        await until(lambda: wire.writes)
        timer = connection.timeout_keep_alive_task
        assert timer is not None
        connection.timeout_keep_alive_handler()  # too early
        assert not wire.is_closed
        assert connection.timeout_keep_alive_task is not None
        timer.cancel()
        connection.data_received(GET)
        await until(lambda: len(wire.writes) == 2)
        connection.connection_lost(None)
        assert connection.timeout_keep_alive_task.cancelled()
        connection, wire = connected(whole, timeout_keep_alive=0)
        connection.data_received(GET)
        await until(lambda: wire.is_closed)
        assert len(wire.writes) == 1

    asyncio.run(main())


def test_a_client_that_asks_first_is_told_to_go_on_once_its_body_is_wanted() -> None:
    async def main() -> None:
        async def echo(scope: Any, receive: Any, send: Any) -> None:
            message = await receive()
            while message["more_body"]:
                message = await receive()
            await send(begins((b"content-length", b"2")))
            await send(body(message["body"]))

        connection, wire = connected(echo)
        connection.data_received(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        await until(lambda: wire.writes)
        assert wire.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
        connection.data_received(b"hi")
        await until(lambda: len(wire.writes) == 2)
        assert wire.writes[1].endswith(b"\r\n\r\nhi")

    asyncio.run(main())


def test_an_answered_call_leaves_nothing_to_the_collector() -> None:
    """A collection of what many calls have left holds the network thread for milliseconds."""
    tokenizer: Any = ByteTokenizer()
    model = ServedModel(
        name="echo", root="file:echo", upstream=EchoUpstream(tokenizer), tokenizer=tokenizer, template=None,
        max_context=64, created=7,
    )  # fmt: skip
    state = ApiState(
        models=Models([model]), clock=VirtualClock(), wall_s=lambda: 1.7e9, version="1", max_body_bytes=4096,
        health=lambda: ServerHealth(state=HealthState.READY), render=lambda: (b"", ""),
    )  # fmt: skip
    asked = b'{"model": "echo", "prompt": "hi", "max_tokens": 2}'
    post = b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(asked), asked)

    async def main() -> int:
        connection, wire = connected(build_app(state))

        async def ask(num: int) -> None:
            for _ in range(num):
                connection.data_received(post)
                await until(lambda: connection.cycle.response_complete)
                await asyncio.sleep(0)

        await ask(3)
        gc.collect()
        gc.disable()
        try:
            await ask(20)
            assert all(write.startswith(b"HTTP/1.1 200") for write in wire.writes)
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(main()) < 20
