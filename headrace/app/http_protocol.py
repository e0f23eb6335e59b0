"""uvicorn's protocol for one connection, with less to do and fewer packets for each answer.

Owns: how an answer is put on the wire, and who is told that its reader has gone.
Invariant: bytes leave in the order of requests and messages. A head waits for the body that follows at once, and leaves
with it in one write, so that the client is woken once; where none does, it leaves by itself within the same turn of the
loop. A client that goes away is told of once, to the call that is being answered.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from headrace.api import ON_DISCONNECT

Message = Any  # a dictionary of ASGI's
_BAD_NAME = re.compile(rb"[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\\"]")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BODILESS = (204, 304)
_OVER: Any = {}  # the scope of every request that has been answered


class Exchange(RequestResponseCycle):
    """One request and its answer."""

    _head = b""  # made, not written yet
    _leave: Callable[[], None] | None = None

    def on_disconnect(self, leave: Callable[[], None]) -> Callable[[], object]:
        """Have `leave` called once the client is gone; return what takes that back."""
        self.flow.resume_reading()  # else nobody would see it go
        if self.disconnected:
            return asyncio.get_running_loop().call_soon(leave).cancel
        self._leave = leave
        return self._stay

    def _stay(self) -> None:
        self._leave = None

    def hear_disconnect(self) -> None:
        """Hear that the client is gone."""
        if self.response_complete:
            return
        self.disconnected = True
        self.message_event.set()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    async def send(self, message: Message) -> None:
        """Put one ASGI message on the wire, while the client takes what there is."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind != ("http.response.body" if self.response_started else "http.response.start") or self.response_complete:
            raise RuntimeError(f"the message '{kind}' is not the next one of this answer")
        if not self.response_started:
            self._begin(message)
            return
        body, has_more = message.get("body", b""), message.get("more_body", False)
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not has_more:
                body += b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the answer is longer than its content-length")
        if head or body:
            self.transport.write(head + body)
        if not has_more:
            if self.expected_content_length:
                raise RuntimeError("the answer is shorter than its content-length")
            self.response_complete = True
            self.scope = _OVER  # what is kept there names this object: nothing of a request is left to the collector
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def _begin(self, message: Message) -> None:
        """Make the head, and see that it leaves even if no body follows at once."""
        self.response_started = True
        self.waiting_for_100_continue = False
        status, headers = message["status"], [*self.default_headers, *message.get("headers", ())]
        lines = [STATUS_LINE[status]]
        says_close = False
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
            if name == b"content-length" and self.chunked_encoding is None:
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                self.expected_content_length = 0
                self.chunked_encoding = True
            elif name == b"connection":
                says_close = says_close or b"close" in [token.strip() for token in value.lower().split(b",")]
        if _BAD_NAME.search(b"".join(lines[1::4])) or _BAD_VALUE.search(b"".join(lines[3::4])):
            raise RuntimeError("a header of the answer has a character that no header may have")
        if says_close:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _BODILESS:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)
        asyncio.get_running_loop().call_soon(self._write_head)

    def _write_head(self) -> None:
        head, self._head = self._head, b""
        if head and not self.transport.is_closing():
            self.transport.write(head)


class Connection(HttpToolsProtocol):
    """One client's connection."""

    _answering: Exchange | None = None
    _idle_since_s: float | None = None  # by the loop's time; None while there is something to answer

    def on_headers_complete(self) -> None:
        """Begin the request whose headers are there, or queue it behind the one that is being answered."""
        scope: Any = self.scope
        url, parser = httptools.parse_url(self.url), self.parser
        path = url.path.decode("ascii")
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        before: RequestResponseCycle | None = self.cycle
        self.cycle = exchange = Exchange(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        scope["extensions"] = {ON_DISCONNECT: exchange.on_disconnect}
        if before is None or before.response_complete:
            self._start_asgi_task(exchange, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Callable[..., Awaitable[None]]) -> None:
        assert isinstance(cycle, Exchange)
        self._answering = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        """Go on with the next request of a pipeline, or begin to wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since_s = None

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long; one timer lasts for many requests."""
        self.timeout_keep_alive_task = None
        if self._idle_since_s is None or self.transport.is_closing():
            return
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._look_again(left_s)
        else:
            self.transport.close()

    def _look_again(self, after_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(after_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the call that is being answered, be it the last that came or not."""
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        if self._answering is not None:
            self._answering.hear_disconnect()
