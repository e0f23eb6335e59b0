"""How log lines get out: those of a busy moment together, what somebody may be waiting for at once.

Owns the lines that are not written yet. A server writes a line for each request; one by one each is a system call, and
mostly the waking of whoever collects them.
Invariant: lines leave in order, none later than `_PATIENCE_S` after it was said and none kept beyond `_MOST_LINES`; one
of level WARNING or above leaves at once and takes those before it along, as does every line that is said outside of an
event loop, and the end of the process. What a kill takes away is 50 ms of lines that tell of nothing wrong.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TextIO

_PATIENCE_S = 0.05
_MOST_LINES = 256
_BLANK = logging.makeLogRecord({"thread": None, "process": None, "pathname": "", "filename": "", "module": ""}).__dict__
_NAMES = {level: logging.getLevelName(level) for level in (logging.DEBUG, logging.INFO)}


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream, those of one moment in one piece."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # that has been asked to flush

    def emit(self, record: logging.LogRecord) -> None:
        """Spell a line and see that it is written."""
        try:
            self._lines.append(self.format(record) + self.terminator)
            if record.levelno >= logging.WARNING or len(self._lines) >= _MOST_LINES or not self._will_flush():
                self.flush()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Write what waits."""
        self.acquire()
        try:
            self._loop = None
            if self._lines:
                text, self._lines = "".join(self._lines), []
                self.stream.write(text)
                self.stream.flush()
        finally:
            self.release()

    def _will_flush(self) -> bool:
        """Have the running loop flush in a while; say whether there is one."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(_PATIENCE_S, self.flush)
        return True


class PlainRecord(logging.LogRecord):
    """A line of level INFO or DEBUG whose words are known: nothing is looked up about where it was said."""

    def __init__(self, logger: str, level: int, message: str, fields: dict[str, object]) -> None:
        now_s = time.time()
        known = self.__dict__
        known |= _BLANK
        known["name"], known["levelno"], known["levelname"] = logger, level, _NAMES[level]
        known["msg"], known["args"], known["fields"] = message, (), fields
        known["created"], known["msecs"] = now_s, now_s % 1 * 1e3
