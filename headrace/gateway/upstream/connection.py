"""One connection to a remote server: a request goes out, its reply comes in, within bounds of size and time.

Owns a socket, the parser of its replies, and what has arrived and was not taken: at most `_MOST_KEPT` bytes and one
read of the network; then the server has to wait. Made by `origin`, used by one `transport.Reply` at a time.
Invariant: bytes that nobody asked for close the connection, so that no reply is ever taken for another one's.
One timer serves every wait: it is set anew only if it would ring too late, so that a request costs none.
Source: RFC 9112, HTTP/1.1; the parser is httptools' (llhttp).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

_MOST_KEPT = 128 << 10
_MOST_HEAD = 64 << 10
_SLACK_S = 1e-3  # a loop's clock may tell whole milliseconds


class Broken(Exception):
    """The connection has ended in the middle, or what came is no HTTP."""


class Connection(asyncio.Protocol):
    """One connection. `status` is 0 until a reply's head has come."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._kept_bytes = self._head_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings_s = self._until_s = 0.0
        self._is_asked = self._is_headed = self._is_paused = self._is_lost = False
        self._can_stay = True
        self._broken: str | None = None
        self._afterwards: Callable[[], None] | None = None
        self.status = 0
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False
        self.idle_since_s = 0.0

    @property
    def is_open(self) -> bool:
        """Say whether a request may go out."""
        return not self._is_lost and not self._transport.is_closing()

    @property
    def is_reusable(self) -> bool:
        """Say whether the reply has come to its end and left the connection clean."""
        return (
            self.is_complete
            and self._can_stay
            and self._broken is None
            and self.is_open
            and not self._pieces
            and self._transport.get_write_buffer_size() == 0
        )

    def ask(self, head: bytes, body: bytes) -> None:
        """Send a request; what comes from now on is its reply."""
        self.status = self._kept_bytes = self._head_bytes = 0
        self.raw_headers = []
        self.is_complete = self._is_headed = False
        self._is_asked = True
        if len(body) < _MOST_HEAD:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    async def wait(self, until_s: float) -> None:
        """Wait for more of the reply. Raises TimeoutError at `until_s` of the loop's time, and Broken."""
        if self._broken is not None:
            raise Broken(self._broken)
        self._until_s = until_s
        if self._timer is None or self._rings_s > until_s:
            self._set_timer(until_s)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> bytes:
        """Return what has arrived of the body since the last time, b"" for nothing."""
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces = []
        self._kept_bytes = 0
        if self._is_paused:
            self._is_paused = False
            if self.is_open:
                self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def rest(self) -> None:
        """Await no reply: whatever comes now closes the connection."""
        self._is_asked = False
        self.idle_since_s = self._loop.time()

    def finish(self, within_s: float, afterwards: Callable[[], None]) -> None:
        """Throw away the rest of the reply and call `afterwards`; close the connection if it takes longer."""
        self.take()
        handle = self._loop.call_later(within_s, self.abort)

        def done() -> None:
            handle.cancel()
            afterwards()

        self._afterwards = done

    def abort(self) -> None:
        """Close the connection at once. Idempotent."""
        self._transport.abort()

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take in what has arrived."""
        if not self._is_asked:
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("no HTTP")
        if not self.status:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD:
                self._fail(f"a head of more than {_MOST_HEAD:,} bytes")
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end; it completes a body whose head told no length."""
        self._is_lost = True
        if self._timer is not None:
            self._timer.cancel()
        if self._is_asked and not self.is_complete:
            if self.status and exc is None and self._ends_with_connection:
                self.is_complete = True
            else:
                self._fail("connection closed" if exc is None else type(exc).__name__)
        self._go_on()

    # What the parser tells.

    def on_message_begin(self) -> None:
        """Note a reply that nobody asked for."""
        if self.is_complete:
            self._can_stay = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; trailers are of no use."""
        if not self.status:
            self.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Note the status, unless a later one follows (1xx)."""
        status = self._parser.get_status_code()
        if status < 200:
            self.raw_headers = []
        elif not self.is_complete:
            self.status = status

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body until it is taken."""
        if self.is_complete or self._afterwards is not None:
            return
        self._pieces.append(piece)
        self._kept_bytes += len(piece)
        if self._kept_bytes > _MOST_KEPT and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Note that the reply is whole."""
        if self.status and not self.is_complete:
            self.is_complete = True
            self._can_stay = self._parser.should_keep_alive()

    @property
    def _ends_with_connection(self) -> bool:
        framing = (b"content-length", b"transfer-encoding")
        return not any(name.lower() in framing for name, _ in self.raw_headers)

    def _fail(self, reason: str) -> None:
        if self._broken is None and not self.is_complete:
            self._broken = reason
        self._can_stay = False

    def _go_on(self) -> None:
        """Wake who waits for the reply, or end one that nobody reads on."""
        if self._waiter is not None and not self._waiter.done():
            if self._pieces or self.is_complete or (self.status and not self._is_headed):
                self._is_headed = True
                self._waiter.set_result(None)
            elif self._broken is not None:
                self._waiter.set_exception(Broken(self._broken))
        if self._afterwards is not None and (self.is_complete or self._broken is not None):
            afterwards, self._afterwards = self._afterwards, None
            afterwards()

    def _set_timer(self, until_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_s = until_s
        self._timer = self._loop.call_at(until_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() + _SLACK_S < self._until_s:
            self._set_timer(self._until_s)
        else:
            self._waiter.set_exception(TimeoutError())
