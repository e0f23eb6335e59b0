"""What every adapter does with a reply before its wire matters: status, kind of body, events within their limit.

Owns nothing: a reply's transport is closed by whoever opened it. Callers are the adapters in `wires/`; a reply that is
none, too large or no JSON becomes a `Failure` here, so that failover sees one kind of error from every vendor.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Protocol, TypeVar

import msgspec

from headrace.core.delta import Delta
from headrace.gateway.upstream.failure import Failure, of_status, transient
from headrace.gateway.upstream.sse_events import EventReader, EventTooLarge, SentEvent
from headrace.gateway.upstream.transport import Reply

T = TypeVar("T")
_ERROR_BYTES = 64 << 10


async def checked(upstream: str, reply: Reply) -> None:
    """Raise Failure for a reply that is an error, sorted by its status and words."""
    if reply.status == 200:
        return
    parts: list[bytes] = []
    size = 0
    try:
        while size <= _ERROR_BYTES and (piece := await reply.read()):
            parts.append(piece)
            size += len(piece)
    except Failure:
        pass  # the status says enough
    raise of_status(upstream, reply.status, reply.headers, b"".join(parts)[:_ERROR_BYTES])


async def whole_body(upstream: str, reply: Reply) -> bytes:
    """Return the body of a reply that is no stream. Raises Failure for one that cannot be JSON."""
    body = await reply.body()
    if not body.lstrip().startswith(b"{"):
        raise transient(upstream, f"sent what is no reply of this wire ({len(body):,} bytes that begin no JSON object)")
    return body


async def events_of(upstream: str, reply: Reply, max_event_bytes: int) -> AsyncGenerator[SentEvent, None]:
    """Yield the events of a stream. Raises Failure for one that is too large."""
    reader = EventReader(max_event_bytes)
    while piece := await reply.read():
        try:
            for event in reader.feed(piece):
                yield event
        except EventTooLarge as err:
            raise transient(upstream, f"sent {err} (max_event_bytes of this upstream)") from err


class DeltaReader(Protocol):
    """Turns one wire's answer into deltas. `is_done` once the wire's own end has come."""

    is_done: bool

    def read(self, data: bytes) -> Iterator[Delta]:
        """Yield the deltas of one event. Raises Failure."""
        ...

    def read_whole(self, body: bytes) -> Iterator[Delta]:
        """Yield the deltas of an answer that is no stream. Raises Failure."""
        ...

    def end(self) -> Iterator[Delta]:
        """Yield what is left once the stream has ended. Raises Failure for one that was cut off."""
        ...


async def deltas_of(
    upstream: str, reply: Reply, reader: DeltaReader, max_event_bytes: int
) -> AsyncGenerator[Delta, None]:
    """Yield a reply's deltas, streamed or whole, and close it on every way out. Raises Failure."""
    try:
        await checked(upstream, reply)
        if not reply.is_event_stream:
            for delta in reader.read_whole(await whole_body(upstream, reply)):
                yield delta
            return
        async with aclosing(events_of(upstream, reply, max_event_bytes)) as events:
            async for event in events:
                for delta in reader.read(event.data):
                    yield delta
                if reader.is_done:
                    break
        for delta in reader.end():
            yield delta
        reply.close(is_read=True)
    finally:
        reply.close()


async def decoded(upstream: str, reply: Reply, kind: type[T], what: str) -> T:
    """Return a small JSON reply as `kind` and close it. Raises Failure for an error, or for what is no `what`."""
    try:
        await checked(upstream, reply)
        return msgspec.json.decode(await whole_body(upstream, reply), type=kind)
    except msgspec.DecodeError as err:
        raise transient(upstream, f"sent what is no {what}") from err
    finally:
        reply.close()
