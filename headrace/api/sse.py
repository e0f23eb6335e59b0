"""Server-sent events as a raw ASGI reply, and the watch for clients that go away.

Owns: one open socket per stream. The iterator of events is always closed here, however the stream ends; closing it
aborts the work behind it.
Invariant: no byte is sent before the first event exists, so an early refusal still has its own HTTP status. A stream
that fails later carries one `error` event and then closes without `[DONE]`.
Source: WHATWG HTML, server-sent events; OpenAI streaming.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import TypeVar

from starlette.types import Receive, Scope, Send

from headrace.api.calls import Call
from headrace.api.errors import error_event
from headrace.api.replies import encoded
from headrace.core.errors import HeadraceError

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
ON_DISCONNECT = "headrace.on_disconnect"  # an extension of the scope: calls back once the client is gone
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_log = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client closed the connection; nothing can be told to it any more."""


def event(payload: bytes) -> bytes:
    """Frame one JSON document."""
    return b"data: " + payload + b"\n\n"


class EventStream:
    """ASGI application that sends `events`, each already framed, and aborts them when the client goes away."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        request_id: str,
        call: Call | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take the events of `call`, which ends with this stream; without one they come from a recording.

        headers  more of the reply; read when the first event is there
        """
        self._events = events
        self._request_id = request_id
        self._call = call
        self._more_headers: Mapping[str, str] = {} if headers is None else headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(scope, receive, self._pump(send, scope["path"]))
        except ClientGone:
            what = "request %s aborted" if self._call is not None else "request %s goes on without it for its grace"
            _log.info(f"client gone, {what}", self._request_id)
        finally:
            if self._call is not None:
                self._call.close()

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [*_HEADERS, *encoded(self._more_headers)]

    async def _pump(self, send: Send, path: str) -> None:
        is_started = False

        async def copy() -> None:
            nonlocal is_started
            async for chunk in events:
                if not is_started:
                    is_started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self._headers()})
                await send({"type": "http.response.body", "body": chunk, "more_body": True})

        async with aclosing(self._events) as events:
            try:
                await (copy() if self._call is None else self._call.run(copy()))
            except Exception as err:
                if not is_started:
                    if isinstance(err, HeadraceError):
                        err.headers = (*self._more_headers.items(), *err.headers)
                    raise
                if not isinstance(err, HeadraceError):
                    _log.exception("request %s failed inside its stream", self._request_id)
                failure = error_event(err, self._request_id, path)
                await send({"type": "http.response.body", "body": failure, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_disconnect(scope: Scope, receive: Receive, work: Coroutine[object, object, T]) -> T:
    """Do `work` in this task; cut it off and raise ClientGone if the client disconnects first."""
    worker = asyncio.current_task()
    assert worker is not None
    is_gone = False

    def leave() -> None:
        nonlocal is_gone
        is_gone = True
        worker.cancel()

    stop = _watch(scope, receive, leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not is_gone or worker.uncancel():  # cancelled by somebody else, too
            raise
        raise ClientGone from None
    finally:
        stop()


def _watch(scope: Scope, receive: Receive, leave: Callable[[], None]) -> Callable[[], object]:
    """Call `leave` when the client disconnects; return what ends the watch.

    The server of `app.connections` says so itself; for another one a task has to ask it.
    """
    watch: Callable[[Callable[[], None]], Callable[[], object]] | None = scope.get("extensions", {}).get(ON_DISCONNECT)
    return watch(leave) if watch is not None else asyncio.ensure_future(_ask(receive, leave)).cancel


async def _ask(receive: Receive, leave: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    leave()
