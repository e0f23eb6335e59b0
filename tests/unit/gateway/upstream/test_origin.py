"""URLs taken apart, and connections that nobody uses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headrace.gateway.upstream.origin import Origin, place_of


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://10.0.0.5:8000/v1/chat", (False, "10.0.0.5", 8000, "10.0.0.5:8000", "/v1/chat")),
        ("https://api.example.com/v1", (True, "api.example.com", 443, "api.example.com", "/v1")),
        ("http://h:80", (False, "h", 80, "h", "/")),
        ("https://h:80/", (True, "h", 80, "h:80", "/")),
        ("http://[::1]:9/v1", (False, "::1", 9, "[::1]:9", "/v1")),
        ("http://bücher.ch/ä b?q=ü", (False, "xn--bcher-kva.ch", 80, "xn--bcher-kva.ch", "/%C3%A4%20b?q=%C3%BC")),
        ("http://h/a%20b", (False, "h", 80, "h", "/a%20b")),
    ],
)  # fmt: skip
def test_a_url_is_taken_apart(url: str, place: tuple[object, ...]) -> None:
    assert place_of(url) == place


@pytest.mark.parametrize("url", ["ftp://h/", "http://", "h:8000", "http://h:99999/", "http://" + "ü" * 70 + "/"])
def test_what_is_no_url_is_none(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 — of several libraries
        place_of(url)


@asynccontextmanager
async def connected(reply: bytes, rest: bytes, keep_alive_s: float = 15.0) -> AsyncIterator[Any]:
    """Yield an origin, a connection that has had `reply`, the signal to send `rest`, and the one that it was left."""
    go_on, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(reply)
        await go_on.wait()
        writer.write(rest)
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
        left.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    origin = Origin(place_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"), keep_alive_s=keep_alive_s)
    connection = await origin.connect()
    connection.ask(b"x", b"")
    while not connection.status:
        await connection.wait(asyncio.get_running_loop().time() + 5)
    yield origin, connection, go_on, left
    connection.abort()
    go_on.set()
    await asyncio.wait_for(left.wait(), 5)
    server.close()
    await server.wait_closed()


NOTHING = b"HTTP/1.1 204 N\r\n\r\n"
HALF = b"HTTP/1.1 200 O\r\ncontent-length: 2\r\n\r\n{"


def test_an_idle_connection_is_used_again_and_closed_before_servers_do_it() -> None:
    async def run() -> None:
        async with connected(NOTHING, b"", keep_alive_s=0.05) as (origin, connection, go_on, left):
            origin.take_back(connection)
            assert origin.try_reuse() is connection
            assert origin.try_reuse() is None
            origin.take_back(connection)
            go_on.set()
            await asyncio.wait_for(left.wait(), 5)
            assert origin.try_reuse() is None

    asyncio.run(run())


def test_a_reply_that_was_not_read_to_its_end_costs_the_connection() -> None:
    async def run() -> None:
        async with connected(HALF, b"") as (origin, connection, go_on, left):
            origin.take_back(connection)
            go_on.set()
            await asyncio.wait_for(left.wait(), 5)
            assert origin.try_reuse() is None

    asyncio.run(run())


@pytest.mark.parametrize(("rest", "is_kept"), [(b"}", True), (b"", False), (b"}HTTP/1.1 200 O\r\n", False)])
def test_what_follows_the_last_word_is_awaited_for_a_moment(rest: bytes, is_kept: bool) -> None:
    async def run() -> None:
        async with connected(HALF, rest) as (origin, connection, go_on, _):
            ended = asyncio.Event()

            def end() -> None:
                origin.take_back(connection)
                ended.set()

            connection.finish(0.05 if not rest else 5.0, end)
            go_on.set()
            await asyncio.wait_for(ended.wait(), 5)
            assert (origin.try_reuse() is connection) is is_kept

    asyncio.run(run())
