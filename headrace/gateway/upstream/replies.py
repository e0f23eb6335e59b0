"""What every adapter does with a reply before its wire matters: status, kind of body, events within their limit.

Owns one reply of each `Answer`, from its head to the giving back of its connection. Callers are the adapters; a reply
that is none, too large or no JSON becomes a `Failure` here, so that failover sees one kind of error from every vendor.
Deltas come in batches: what one read brings goes through the layers above at once, without a generator in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from headrace.core.delta import Delta
from headrace.gateway.upstream.failure import Failure, of_status, transient
from headrace.gateway.upstream.reported import ReportedCosts, ToldCost
from headrace.gateway.upstream.sse_events import EventReader
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
    if body[:1] != b"{" and not body.lstrip().startswith(b"{"):
        raise transient(upstream, f"sent what is no reply of this wire ({len(body):,} bytes that begin no JSON object)")
    return body


class DeltaReader(Protocol):
    """Turns one wire's answer into deltas.

    is_done  the wire's own end has come
    """

    is_done: bool

    @property
    def told_cost(self) -> ToldCost | None:
        """Return what the usage says of money."""
        ...

    def read(self, data: bytes) -> Sequence[Delta]:
        """Return the deltas of one event. Raises Failure."""
        ...

    def read_whole(self, body: bytes) -> Sequence[Delta]:
        """Return the deltas of an answer that is no stream. Raises Failure."""
        ...

    def end(self) -> Sequence[Delta]:
        """Return what is left once the stream has ended. Raises Failure for one that was cut off."""
        ...


class Answer:
    """One reply as it is read: all deltas that one read of the network completes, then those of the next.

    has_ended  there is no more of it
    """

    def __init__(
        self, upstream: str, reply: Reply, reader: DeltaReader, costs: ReportedCosts, max_event_bytes: int
    ) -> None:
        self._upstream = upstream
        self._reply = reply
        self._reader = reader
        self._costs = costs
        self._events = EventReader(max_event_bytes) if reply.is_event_stream else None
        self._failure: Failure | None = None
        self.has_ended = False

    async def more(self) -> Sequence[Delta]:
        """Wait for the next deltas, none at the end. Raises Failure, once what came before it has been returned."""
        if self._failure is not None:
            raise self._failure
        deltas: list[Delta] = []
        try:
            if self._reply.status != 200:
                await checked(self._upstream, self._reply)
            if self._events is None:
                if not self.has_ended:
                    deltas.extend(self._reader.read_whole(await whole_body(self._upstream, self._reply)))
                    self._end()
            else:
                while not deltas and not self.has_ended:
                    await self._read(self._events, deltas)
        except Failure as failure:
            if not deltas:
                raise
            self._failure = failure
        for i, delta in enumerate(deltas):
            if delta.usage is not None:
                headers = self._reply.headers if self._events is None else {}  # a stream's came before its cost
                deltas[i] = self._costs.note(delta, self._reader.told_cost, headers)
        return deltas

    def close(self) -> None:
        """Give the connection back, or close it if more could come. Idempotent."""
        self._reply.close(is_read=self.has_ended)

    async def _read(self, events: EventReader, deltas: list[Delta]) -> None:
        """Read the network once and add what it brings."""
        piece = await self._reply.read()
        reader = self._reader
        for data in events.feed(piece):
            deltas.extend(reader.read(data))
            if reader.is_done:
                break
        else:
            if events.excess is not None:  # told after the events before it
                raise transient(self._upstream, f"sent {events.excess} (max_event_bytes of this upstream)")
        if reader.is_done or not piece:
            deltas.extend(reader.end())
            self._end()

    def _end(self) -> None:
        self.has_ended = True
        self.close()


async def decoded(upstream: str, reply: Reply, kind: type[T], what: str) -> T:
    """Return a small JSON reply as `kind` and close it. Raises Failure for an error, or for what is no `what`."""
    try:
        await checked(upstream, reply)
        return msgspec.json.decode(await whole_body(upstream, reply), type=kind)
    except msgspec.DecodeError as err:
        raise transient(upstream, f"sent what is no {what}") from err
    finally:
        reply.close()
