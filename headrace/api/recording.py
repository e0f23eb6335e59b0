"""One call's events, numbered and kept for a while, so that a reader who lost the connection can go on where it was.

Owns: the task that makes the events, a bounded buffer of them, and the time for which the task goes on without readers.

    events:  | dropped | kept: can be sent again | not sent yet |
             1         ^ first                   ^ floor        ^ last

Invariant: no more than `max_events` events and `max_bytes` bytes are kept, or one event that is longer. When they are
full, what every reader has had is dropped first; when there is nothing of that kind, the task waits, and through it the
sequence behind it. The call is aborted when nobody has read for the grace period. Network thread only.
Source: WHATWG HTML, server-sent events, `Last-Event-ID`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from headrace.core.errors import InvalidRequest, StreamExpired

_ATTACH_S = 5.0  # for the first reader to come


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingLimits:
    """Bounds of one recording.

    max_grace_s    longest time without readers that a client may ask for
    keep_keyed_s   how long an ended answer is kept for its idempotency key
    """

    max_grace_s: float = 60.0
    max_events: int = 8192
    max_bytes: int = 1 << 20
    max_streams: int = 256
    keep_keyed_s: float = 600.0


class Recording:
    """The events of one call. `on_end` hears of the last event, `on_expire` of the end of its usefulness."""

    def __init__(
        self,
        limits: RecordingLimits,
        *,
        grace_s: float,
        keep_s: float,
        on_end: Callable[[Recording], None],
        on_expire: Callable[[Recording], None],
    ) -> None:
        self.is_over = False
        self.error: BaseException | None = None
        self.is_numbered = True
        self.headers: dict[str, str] = {}  # of the call, as far as they are known
        self.grace_s = grace_s
        self._limits = limits
        self._keep_s = keep_s
        self._on_end = on_end
        self._on_expire = on_expire
        self._frames: deque[bytes] = deque()
        self._num_bytes = 0
        self._first = 1
        self._readers: dict[object, int] = {}  # last event each has had
        self._left_at = 0  # last event that a reader who has gone had had
        self._news = asyncio.Event()
        self._has_moved = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_expired = False

    @property
    def last(self) -> int:
        """Return the number of the newest event; 0 before the first."""
        return self._first + len(self._frames) - 1

    @property
    def has_readers(self) -> bool:
        """Say whether anybody is reading."""
        return bool(self._readers)

    def start(self, events: AsyncGenerator[bytes, None], *, is_numbered: bool) -> None:
        """Begin to make and keep the events; each gets an `id:` if they are numbered."""
        self.is_numbered = is_numbered
        self._set_timer(max(self.grace_s, _ATTACH_S))
        self._task = asyncio.ensure_future(self._record(events))

    def check(self, after: int) -> None:
        """Raise StreamExpired if what follows event `after` is not all kept, InvalidRequest for one that is to come."""
        if after > self.last:
            raise InvalidRequest(f"Last-Event-ID is {after}; the newest event is {self.last}", param="Last-Event-ID")
        if after + 1 < self._first:
            raise StreamExpired(
                f"events {after + 1} to {self._first - 1} are not kept any more (resume.max_events, resume.max_bytes); "
                "send the request again"
            )

    async def read(self, after: int) -> AsyncGenerator[bytes, None]:
        """Yield the framed events that follow `after`, old and new, to the end. Raises what the call has raised."""
        self.check(after)
        reader, position = object(), after
        self._readers[reader] = position
        self._set_timer(None)
        try:
            while True:
                while position < self.last:
                    yield self._frames[position + 1 - self._first]
                    position += 1
                    self._readers[reader] = position
                    self._has_moved.set()
                if self.is_over:
                    if self.error is not None:
                        raise self.error
                    return
                await self._news.wait()
        finally:
            del self._readers[reader]
            self._left_at = max(self._left_at, position)
            self._has_moved.set()
            if not self._readers:
                self._set_timer(self._keep_s if self.is_over else self.grace_s)

    def expire(self) -> None:
        """End the call if it is running, and be forgotten. Idempotent."""
        if self._is_expired:
            return
        self._set_timer(None)
        self._is_expired = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
        self._on_expire(self)

    async def _record(self, events: AsyncGenerator[bytes, None]) -> None:
        try:
            async with aclosing(events) as source:
                async for event in source:
                    frame = b"id: %d\n%b" % (self.last + 1, event) if self.is_numbered else event
                    await self._make_room(len(frame))
                    self._frames.append(frame)
                    self._num_bytes += len(frame)
                    self._tell()
        except BaseException as err:
            self.error = err if isinstance(err, Exception) else StreamExpired("nobody read this stream; it was aborted")
        self.is_over = True
        self._tell()
        if not self._readers:
            self._set_timer(self._keep_s)
        self._on_end(self)

    async def _make_room(self, num_bytes: int) -> None:
        """Drop the oldest events until one more fits; wait for readers when none may be dropped."""
        limits = self._limits
        while self._frames and (
            len(self._frames) >= limits.max_events or self._num_bytes + num_bytes > limits.max_bytes
        ):
            if self._first <= min(self._readers.values(), default=self._left_at):
                self._num_bytes -= len(self._frames.popleft())
                self._first += 1
                continue
            self._has_moved.clear()
            await self._has_moved.wait()

    def _tell(self) -> None:
        """Wake every reader."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and not self._is_expired:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.expire)
