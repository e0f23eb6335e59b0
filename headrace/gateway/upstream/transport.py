"""HTTP to remote upstreams: every wait and every size bounded, every fault a Failure.

Owns the origins of one event loop, each with its idle connections; made by the first request, closed by `close`.
Invariant: a reply that is closed before its end closes its connection, which tells the server that nobody listens.
A client of its own, because the general ones do for each call what is known before it; docs/design/027 has the numbers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

import msgspec

from headrace.core.errors import UpstreamFailed
from headrace.gateway.upstream.connection import Broken, Connection
from headrace.gateway.upstream.failure import Failure, Kind, timed_out, transient
from headrace.gateway.upstream.origin import Origin, Place, place_of

_DRAIN_S = 0.05


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one call, from the upstream's settings."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float
    max_reply_bytes: int


class Reply:
    """One reply: status, headers, and a body that is read once."""

    def __init__(
        self, connection: Connection, origin: Origin, upstream: str, limits: Limits, deadline_s: float
    ) -> None:
        self._connection: Connection | None = connection
        self._origin = origin
        self._upstream = upstream
        self._limits = limits
        self._deadline_s = deadline_s
        self._num_bytes = 0
        self._raw_headers = connection.raw_headers
        self.status = connection.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers, their names in lower case."""
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._raw_headers}

    @property
    def is_event_stream(self) -> bool:
        """Say whether the body is server-sent events."""
        for name, value in self._raw_headers:
            if name.lower() == b"content-type":
                return value.partition(b";")[0].strip().lower() == b"text/event-stream"
        return False

    async def read(self) -> bytes:
        """Return what has arrived of the body, waiting for some; b"" at its end.

        Raises Failure for silence, for too much of it, and when it breaks off.
        """
        connection = self._connection
        assert connection is not None, "a closed reply is not read"
        while not (piece := connection.take()):
            if connection.is_complete:
                return b""
            now_s = asyncio.get_running_loop().time()
            try:
                await connection.wait(min(now_s + self._limits.idle_s, self._deadline_s))
            except TimeoutError as err:
                raise timed_out(self._upstream, self._silence()) from err
            except Broken as err:
                raise transient(self._upstream, f"broke off in its reply ({err})") from err
        self._num_bytes += len(piece)
        if self._num_bytes > self._limits.max_reply_bytes:
            raise transient(
                self._upstream,
                f"sent more than {self._limits.max_reply_bytes:,} bytes (max_reply_bytes of this upstream)",
            )
        return piece

    async def body(self) -> bytes:
        """Return the whole body. Raises what `read` raises."""
        pieces = [first := await self.read()]
        while first and (piece := await self.read()):
            pieces.append(piece)
        return b"".join(pieces) if len(pieces) > 1 else first

    def close(self, *, is_read: bool = False) -> None:
        """Give the connection back if the body has come to its end, else close it. Idempotent.

        is_read  nothing of use can follow: the connection is given back once the end comes, if that is soon
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if is_read and not connection.is_complete and connection.is_open:
            origin = self._origin
            connection.finish(_DRAIN_S, lambda: origin.take_back(connection))
        else:
            self._origin.take_back(connection)

    def _silence(self) -> str:
        if asyncio.get_running_loop().time() + 1e-3 >= self._deadline_s:
            return f"was not done after {self._limits.total_s:g} s (total_s)"
        return f"fell silent for {self._limits.idle_s:g} s (idle_s)"


class Transport:
    """Calls remote servers."""

    def __init__(self) -> None:
        self._origins: dict[tuple[bool, str, int], Origin] = {}

    async def post(
        self, upstream: str, url: str, headers: Mapping[str, str], body: bytes, limits: Limits, first_byte_s: float
    ) -> Reply:
        """Send a request and wait for the head of its reply. Raises Failure."""
        return await self._call("POST", upstream, url, headers, body, limits, first_byte_s)

    async def get(self, upstream: str, url: str, headers: Mapping[str, str], limits: Limits) -> Reply:
        """Ask for something small. Raises Failure."""
        return await self._call("GET", upstream, url, headers, b"", limits, limits.first_byte_s)

    async def close(self) -> None:
        """Close all idle connections. Idempotent."""
        while self._origins:
            self._origins.popitem()[1].close()
        await asyncio.sleep(0)  # the loop closes sockets in its next turn

    async def _call(
        self,
        method: str,
        upstream: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        limits: Limits,
        first_byte_s: float,
    ) -> Reply:
        try:
            place = place_of(url)
        except ValueError as err:
            raise transient(upstream, "has a url that is none") from err
        head = _head(method, place, upstream, headers, len(body))
        start_s = asyncio.get_running_loop().time()
        origin = self._origins.get(place[:3])
        if origin is None:
            origin = self._origins[place[:3]] = Origin(place)
        connection = origin.try_reuse()
        if connection is None:
            connection = await _connect(origin, upstream, limits.connect_s, first_byte_s)
        until_s = start_s + min(first_byte_s, limits.total_s)
        try:
            connection.ask(head, body)
            while not connection.status:
                await connection.wait(until_s)
        except TimeoutError as err:
            raise timed_out(upstream, f"sent nothing for {first_byte_s:g} s (first_byte_s)") from err
        except Broken as err:
            raise transient(upstream, f"broke off before its reply ({err})") from err
        finally:
            if not connection.status:
                connection.abort()
        return Reply(connection, origin, upstream, limits, start_s + limits.total_s)


async def _connect(origin: Origin, upstream: str, connect_s: float, first_byte_s: float) -> Connection:
    try:
        async with asyncio.timeout(min(connect_s, first_byte_s)):
            return await origin.connect()
    except TimeoutError as err:
        bound = f"{connect_s:g} s (connect_s)" if connect_s <= first_byte_s else f"{first_byte_s:g} s (first_byte_s)"
        raise timed_out(upstream, f"could not be reached within {bound}") from err
    except OSError as err:
        raise transient(upstream, f"cannot be reached ({_reason(err)})") from err


def _reason(err: OSError) -> str:
    """Say why there is no connection, without the address that asyncio puts into its words: callers hear this too."""
    text = err.strerror or type(err).__name__
    return os.strerror(err.errno) if err.errno and text.startswith("Connect call failed") else text


def _head(method: str, place: Place, upstream: str, headers: Mapping[str, str], body_bytes: int) -> bytes:
    """Spell the head of a request. Compressed replies could be far larger than their bytes; none is asked for."""
    fields = {"host": place.netloc, "accept": "*/*", **headers, "accept-encoding": "identity"}
    lines = [f"{name}: {value}\r\n" for name, value in fields.items()]
    head = f"{method} {place.target} HTTP/1.1\r\n{''.join(lines)}content-length: {body_bytes}\r\n\r\n"
    if head.count("\n") != len(lines) + 3 or head.count("\r") != len(lines) + 3:
        error = UpstreamFailed(
            f"a header for upstream '{upstream}' holds a line break; correct upstreams.{upstream}.headers or api_key"
        )
        raise Failure(Kind.MISPLACED, error)
    return head.encode()
