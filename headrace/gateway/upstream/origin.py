"""Where a server is, and the connections to it that nobody uses just now.

Owns the idle connections to one scheme, host and port, and the addresses that its name has had in the last seconds.
Invariant: an idle connection is closed after `keep_alive_s`, before servers do, so that none goes as a request comes.
Source: RFC 8305, Happy Eyeballs, by aiohappyeyeballs.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import aiohappyeyeballs

from headrace.gateway.upstream.connection import Connection

_KEEP_ALIVE_S = 15.0
_NAME_S = 10.0  # for which the addresses of a name are believed
_NEXT_ADDRESS_S = 0.25
_MOST_URLS = 1024
_IN_PATHS = "/%:@!$&'()*+,;=-._~"


class Place(NamedTuple):
    """A URL taken apart: `netloc` is the host header, `target` what the request line asks for."""

    is_tls: bool
    host: str
    port: int
    netloc: str
    target: str


@lru_cache(_MOST_URLS)
def place_of(url: str) -> Place:
    """Take a URL apart. Raises ValueError for one that cannot be called."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no http URL")
    is_tls = parts.scheme == "https"
    usual = 443 if is_tls else 80
    port = parts.port or usual
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    spelled = f"[{host}]" if ":" in host else host
    target = quote(parts.path or "/", safe=_IN_PATHS)
    if parts.query:
        target += "?" + quote(parts.query, safe=_IN_PATHS + "?")
    return Place(is_tls, host, port, spelled if port == usual else f"{spelled}:{port}", target)


class Origin:
    """The server at `place`, of one event loop."""

    def __init__(self, place: Place, *, keep_alive_s: float = _KEEP_ALIVE_S) -> None:
        self._place = place
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._lookup = asyncio.Lock()
        self._addresses: list[tuple[int, int, int, str, tuple[object, ...]]] = []
        self._found_s = 0.0
        self._trust = _trust() if place.is_tls else None

    def try_reuse(self) -> Connection | None:
        """Return the connection that was used last, if there is one that is fresh."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and self._loop.time() - connection.idle_since_s < self._keep_alive_s:
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """Open another connection. Raises OSError. The caller bounds the time."""
        addresses = await self._look_up()
        sock = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1, loop=self._loop
        )
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self._loop),
                sock=sock,
                ssl=self._trust,
                server_hostname=self._place.host.rstrip(".") if self._trust is not None else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    def take_back(self, connection: Connection) -> None:
        """Keep a connection for the next request, or close it if its reply was not read to the end."""
        if not connection.is_reusable:
            connection.abort()
            return
        connection.rest()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._keep_alive_s, self._close_old)

    def close(self) -> None:
        """Close the idle connections. Idempotent."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._idle:
            self._idle.pop().abort()

    def _close_old(self) -> None:
        now_s = self._loop.time()
        young = [one for one in self._idle if one.is_open and now_s - one.idle_since_s < self._keep_alive_s]
        for connection in self._idle:
            if connection not in young:
                connection.abort()
        self._idle = young
        oldest_s = min((one.idle_since_s for one in young), default=0.0)
        self._sweep = self._loop.call_at(oldest_s + self._keep_alive_s, self._close_old) if young else None

    async def _look_up(self) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        async with self._lookup:  # who comes meanwhile takes the same answer
            if not self._addresses or self._loop.time() - self._found_s > _NAME_S:
                host, port = self._place.host, self._place.port
                self._addresses = list(await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
                self._found_s = self._loop.time()
            return self._addresses


def _trust() -> ssl.SSLContext:
    """Return the certificates of this machine. Cost: some 20 ms."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
