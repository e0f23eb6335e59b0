from __future__ import annotations

import asyncio
from typing import Any

from headrace.api.visit import HeaderMap


def test_of_a_header_that_came_twice_the_first_counts() -> None:
    headers = HeaderMap([(b"a", b"1"), (b"b", b"\xe9"), (b"a", b"2")])
    assert dict(headers) == {"a": "1", "b": "\u00e9"}
    assert (headers.get("A"), headers.get("c", "none"), len(headers)) == ("1", "none", 2)


def test_a_body_that_breaks_off_is_refused_and_one_in_pieces_is_read(api: Any) -> None:
    async def call(*messages: dict[str, Any]) -> tuple[int, bytes]:
        said: list[dict[str, Any]] = []
        waiting = list(messages)

        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop(0)
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            said.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": []}
        await api.app(scope, receive, send)
        return said[0]["status"], said[1]["body"]

    begin = {"type": "http.request", "body": b'{"prompt": "a', "more_body": True}
    end = {"type": "http.request", "body": b'bc", "max_tokens": 9}'}
    status, body = asyncio.run(call(begin, end))
    assert status == 200
    assert b"abc" in body
    status, body = asyncio.run(call(begin, {"type": "http.disconnect"}))
    assert status == 400
    assert b"before the whole body arrived" in body
