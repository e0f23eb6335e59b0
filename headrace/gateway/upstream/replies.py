"""What every adapter does with a reply before its wire matters: status, kind of body, events within their limit."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from headrace.gateway.upstream.failure import Failure, of_status, transient
from headrace.gateway.upstream.sse_events import EventReader, EventTooLarge, SentEvent
from headrace.gateway.upstream.transport import Reply

_ERROR_BYTES = 64 << 10


async def checked(upstream: str, reply: Reply) -> None:
    """Raise Failure for a reply that is an error, sorted by its status and words."""
    if reply.status == 200:
        return
    parts: list[bytes] = []
    size = 0
    try:
        async with aclosing(reply.pieces()) as pieces:
            async for piece in pieces:
                parts.append(piece)
                size += len(piece)
                if size > _ERROR_BYTES:
                    break
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
    async with aclosing(reply.pieces()) as pieces:
        async for piece in pieces:
            try:
                for event in reader.feed(piece):
                    yield event
            except EventTooLarge as err:
                raise transient(upstream, f"sent {err} (max_event_bytes of this upstream)") from err
