"""HTTP to remote upstreams: one pool of connections, every wait and every size bounded, every fault a Failure.

Owns the client session of one event loop; opened by the first request, closed by `close`.
Invariant: a reply that is closed before its end closes its connection, which tells the server that nobody listens.
aiohttp, because a request costs it 57 µs of CPU where httpx takes 729 µs (16 in flight, one core), and a stream of 64
events 366 µs where httpx takes 1,179; docs/design/027 has what was tried besides.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from functools import lru_cache

import aiohttp
import msgspec
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

import headrace
from headrace.core.errors import UpstreamFailed
from headrace.gateway.upstream.failure import Failure, Kind, timed_out, transient

_KEEP_ALIVE_S = 15.0  # shorter than servers keep idle connections, so that none is closed as a request goes out
_CHUNK_BYTES = 64 << 10
_DRAIN_S = 0.05
_SLACK_S = 1e-3  # a loop's clock may tell whole milliseconds
_MOST_URLS = 1024
_NAME = f"headrace/{headrace.__version__}"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one call, from the upstream's settings."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float
    max_reply_bytes: int


class _Connector(aiohttp.TCPConnector):
    """The pool of connections; one on which something came that nobody asked for is not used again.

    aiohttp by itself would take such bytes (a proxy's 408 on an idle connection, say) for the next request's reply.
    """

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """Return a connection that nothing has come on since its last reply."""
        while True:
            connection = await super().connect(req, traces, timeout)
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()


class Reply:
    """One reply: status, headers, and a body that is read once."""

    def __init__(self, response: aiohttp.ClientResponse, upstream: str, limits: Limits, deadline_s: float) -> None:
        self._response = response
        self._upstream = upstream
        self._limits = limits
        self._deadline_s = deadline_s
        self._num_bytes = 0
        self._is_left = self._is_waiting = False
        self._until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    @property
    def is_event_stream(self) -> bool:
        """Say whether the body is server-sent events."""
        return self._response.content_type == "text/event-stream"

    async def read(self) -> bytes:
        """Return what has arrived of the body, waiting for some; b"" at its end.

        Raises Failure for silence, for too much of it, and when it breaks off.
        """
        content = self._response.content
        try:
            piece: bytes = content.read_nowait()
            if not piece:
                piece = b"" if content.at_eof() else await self._wait()
        except TimeoutError as err:
            raise timed_out(self._upstream, self._silence()) from err
        except (aiohttp.ClientError, OSError) as err:
            raise transient(self._upstream, f"broke off in its reply ({type(err).__name__})", may_cost=True) from err
        self._num_bytes += len(piece)
        if self._num_bytes > self._limits.max_reply_bytes:
            raise transient(
                self._upstream,
                f"sent more than {self._limits.max_reply_bytes:,} bytes (max_reply_bytes of this upstream)",
            )
        return piece

    async def body(self) -> bytes:
        """Return the whole body. Raises what `read` raises."""
        first = await self.read()
        if self._response.content.at_eof():
            return first  # it came at once, as nearly all do
        pieces = [first]
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)

    def close(self, *, is_read: bool = False) -> None:
        """Give the connection back if the body has come to its end, else close it. Idempotent.

        is_read  nothing of use can follow: the connection is given back once the end comes, if that is soon
        """
        response = self._response
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if response.content.is_eof():
            response.release()
        elif is_read and not self._is_left:
            asyncio.get_running_loop().call_later(_DRAIN_S, response.close)  # which does nothing after the end
            self._is_left = True
        elif not self._is_left:
            response.close()

    async def _wait(self) -> bytes:
        """Wait for a piece, until it has been silent for too long. One timer serves all waits of a reply."""
        loop = asyncio.get_running_loop()
        self._until_s = min(loop.time() + self._limits.idle_s, self._deadline_s)
        if self._timer is None:
            self._timer = loop.call_at(self._until_s, self._ring)
        self._is_waiting = True
        try:
            return await self._response.content.readany()
        finally:
            self._is_waiting = False

    def _ring(self) -> None:
        """End a wait that has become too long; see to a later one when it would."""
        loop = asyncio.get_running_loop()
        self._timer = None
        if self._is_waiting and loop.time() + _SLACK_S >= self._until_s:
            self._response.content.set_exception(TimeoutError())
        elif self._is_waiting:
            self._timer = loop.call_at(self._until_s, self._ring)

    def _silence(self) -> str:
        if asyncio.get_running_loop().time() + _SLACK_S >= self._deadline_s:
            return _undone(self._limits)
        return f"fell silent for {self._limits.idle_s:g} s (idle_s)"


class Transport:
    """Calls remote servers."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._trust: ssl.SSLContext | None = None

    async def post(
        self, upstream: str, url: str, headers: Mapping[str, str], body: bytes, limits: Limits, first_byte_s: float
    ) -> Reply:
        """Send a request and wait for the head of its reply. Raises Failure."""
        return await self._call("POST", upstream, url, headers, body, limits, first_byte_s)

    async def get(self, upstream: str, url: str, headers: Mapping[str, str], limits: Limits) -> Reply:
        """Ask for something small. Raises Failure."""
        return await self._call("GET", upstream, url, headers, None, limits, limits.first_byte_s)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(
        self,
        method: str,
        upstream: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        limits: Limits,
        first_byte_s: float,
    ) -> Reply:
        try:
            place = _place(url)
        except ValueError as err:
            raise transient(upstream, "has a url that is none") from err
        start_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(start_s + min(first_byte_s, limits.total_s)):
                response = await self._open().request(
                    method,
                    place,
                    data=None if body is None else aiohttp.BytesPayload(body),
                    headers=headers,
                    timeout=_timeout(limits.connect_s),
                    allow_redirects=False,
                    ssl=self._trusted() if place.scheme == "https" else True,
                )
        except aiohttp.ConnectionTimeoutError as err:
            problem = f"could not be reached within {limits.connect_s:g} s (connect_s)"
            raise timed_out(upstream, problem, may_cost=False) from err
        except TimeoutError as err:
            silence = f"sent nothing for {first_byte_s:g} s (first_byte_s)"
            raise timed_out(upstream, silence if first_byte_s <= limits.total_s else _undone(limits)) from err
        except aiohttp.ClientConnectorError as err:
            raise transient(upstream, f"cannot be reached ({_reason(err)})") from err
        except aiohttp.InvalidURL as err:
            raise transient(upstream, "has a url that is none") from err
        except aiohttp.ClientResponseError as err:
            raise transient(upstream, "sent what is no HTTP reply") from err
        except (aiohttp.ClientError, OSError) as err:
            problem = f"broke off before its reply ({type(err).__name__})"
            raise transient(upstream, problem, may_cost=True) from err
        except ValueError as err:  # of a header; the url is checked, and what else may be wrong has had its turn
            raise _misplaced(upstream) from err
        return Reply(response, upstream, limits, start_s + limits.total_s)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                read_bufsize=_CHUNK_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
                # Compressed replies could be far larger than their bytes; none is asked for. All that aiohttp would
                # add by itself is said here: without a list of what to skip it takes a shorter way.
                headers={"accept-encoding": "identity", "accept": "*/*", "user-agent": _NAME},
                auto_decompress=False,
            )
        return self._session

    def _trusted(self) -> ssl.SSLContext:
        """Return the certificates of this machine, as the environment names them now. Cost: some 20 ms, once."""
        if self._trust is None:
            self._trust = ssl.create_default_context()
            self._trust.set_alpn_protocols(["http/1.1"])
        return self._trust


@lru_cache(_MOST_URLS)
def _place(url: str) -> URL:
    """Take a URL apart, once. Raises ValueError for one that cannot be called."""
    place = URL(url)
    if place.scheme not in ("http", "https") or not place.host:
        raise ValueError("no http URL")
    return place


@lru_cache(_MOST_URLS)
def _timeout(connect_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_s)


def _undone(limits: Limits) -> str:
    return f"was not done after {limits.total_s:g} s (total_s)"


def _misplaced(upstream: str) -> Failure:
    error = UpstreamFailed(
        f"a header for upstream '{upstream}' holds a line break; correct upstreams.{upstream}.headers or api_key"
    )
    return Failure(Kind.MISPLACED, error)


def _reason(err: aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError) -> str:
    """Say why there is no connection, without the address that asyncio puts into its words: callers hear this too."""
    cause = err.certificate_error if isinstance(err, aiohttp.ClientConnectorCertificateError) else err.os_error
    number = getattr(cause, "errno", None)
    text = getattr(cause, "strerror", None) or type(cause).__name__
    return os.strerror(number) if number and text.startswith("Connect call failed") else str(text)
