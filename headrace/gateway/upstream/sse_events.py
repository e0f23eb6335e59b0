"""Server-sent events out of bytes that arrive in pieces of any size, within a limit.

Owns the unfinished rest of one stream, never more than the limit and one piece of the network.
Invariant: however the bytes are split, the same events come out. Comments, names and unknown fields are skipped, and
so is an event that the end of the stream cut off.
Source: WHATWG HTML, server-sent events; lines end with LF or CRLF (no server ends them with CR alone).
"""

from __future__ import annotations


class EventReader:
    """Cuts one stream into events. `max_bytes` bounds a line and an event.

    excess  what grew too large, after which nothing more is read; None while nothing has
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self.excess: str | None = None

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that `piece` completes."""
        if not self._rest and not self._data and piece[-2:] == b"\n\n" and len(piece) <= self._max_bytes:
            # Whole events of one line each, as servers write them.
            blocks = piece[:-2].split(b"\n\n")
            if piece.count(b"\n") == 2 * len(blocks) and b"\r" not in piece:
                return [block[6:] if block[5:6] == b" " else block[5:] for block in blocks if block[:5] == b"data:"]
        return self._feed_lines(piece)

    def _feed_lines(self, piece: bytes) -> list[bytes]:
        events: list[bytes] = []
        lines = (self._rest + piece).split(b"\n") if self._rest else piece.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if len(line) > self._max_bytes:
                self.excess = f"a line of more than {self._max_bytes:,} bytes"
                return events
            if line[-1:] == b"\r":
                line = line[:-1]
            if not line:
                if self._data:
                    events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                    self._data, self._data_bytes = [], 0
            elif line[:5] == b"data:":
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._data_bytes += len(line)
                if self._data_bytes > self._max_bytes:
                    self.excess = f"an event of more than {self._max_bytes:,} bytes"
                    return events
        if len(self._rest) > self._max_bytes:
            self.excess = f"a line of more than {self._max_bytes:,} bytes"
        return events
