"""Server-sent events out of bytes that arrive in pieces of any size, within a limit.

Owns the unfinished rest of one stream, never more than the limit and one piece of the network.
Invariant: however the bytes are split, the same events come out. Comments and unknown fields are skipped, and so is an
event that the end of the stream cut off.
Source: WHATWG HTML, server-sent events; lines end with LF or CRLF (no server ends them with CR alone).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class EventTooLarge(Exception):
    """An event exceeds the limit."""


class SentEvent(NamedTuple):
    """One event: its name ("" where none is given) and its data."""

    name: str
    data: bytes


class EventReader:
    """Cuts one stream into events. `max_bytes` bounds a line and an event."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""
        self._name = ""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, piece: bytes) -> Iterator[SentEvent]:
        """Yield the events that `piece` completes; after them, raise EventTooLarge for one that grows too large."""
        lines = (self._rest + piece).split(b"\n") if self._rest else piece.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if not line:
                if self._data:
                    whole = SentEvent(self._name, b"\n".join(self._data))
                    self._data, self._data_bytes = [], 0
                    yield whole
                self._name = ""
            elif line.startswith(b"data:"):
                self._add(line[6:] if line[5:6] == b" " else line[5:])
            elif line.startswith(b"event:"):
                self._name = line[6:].strip().decode("utf-8", errors="replace")
        if len(self._rest) > self._max_bytes:
            raise EventTooLarge(f"a line of more than {self._max_bytes:,} bytes")

    def _add(self, data: bytes) -> None:
        self._data_bytes += len(data) + 1
        if self._data_bytes > self._max_bytes:
            raise EventTooLarge(f"an event of more than {self._max_bytes:,} bytes")
        self._data.append(data)
