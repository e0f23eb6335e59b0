"""Log lines: one event, one line, for people first, as JSON for machines where that is asked.

    12:03:11.482 INFO  api.access  POST /v1/chat/completions 200 312 ms id=4f…
    {"time":"2026-05-01T12:03:11.482Z","level":"info","logger":"api.access","message":"POST …","request_id":"4f…",…}

Owns the process's log configuration; called once by `app.serving`. Bodies, prompts, answers and keys are never logged.
Lines that are written while a request is served carry its id, and its trace's: tasks inherit the tag, other threads and
long-lived tasks have none. What no line tells (the place in the source, thread and process) is not looked up, and the
time of day is spelled once a second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import NamedTuple, TextIO

import msgspec

from headrace.core.settings import LogFormat
from headrace.obs.log_lines import LineHandler


class LogTag(NamedTuple):
    """What lines are tagged with. An empty `trace_id`: the request is not traced."""

    request_id: str
    trace_id: str = ""


_tag: ContextVar[LogTag | None] = ContextVar("headrace_log_tag", default=None)
_CHATTY = "opentelemetry."
_SELDOM_S = 60.0
_QUIET = ("asyncio", "httpx", "httpcore", "uvicorn.access")


class Seldom(logging.Filter):
    """Lets a line of the exporter through once a minute and level: it complains about each batch it cannot send."""

    def __init__(self) -> None:
        super().__init__()
        self._next_s: dict[int, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether to write a line."""
        if not record.name.startswith(_CHATTY):
            return True
        is_due = record.created >= self._next_s.get(record.levelno, 0.0)
        if is_due:
            self._next_s[record.levelno] = record.created + _SELDOM_S
        return is_due


class _SpelledSecond:
    """Spells whole seconds, each once."""

    def __init__(self, form: str, parts: Callable[[float], time.struct_time]) -> None:
        self._form = form
        self._parts = parts
        self._last = 0, ""

    def spell(self, time_s: float) -> str:
        second, text = self._last  # one tuple, so that lines of two threads never mix them
        if int(time_s) != second or not text:
            text = time.strftime(self._form, self._parts(time_s))
            self._last = int(time_s), text
        return text


class LineFormatter(logging.Formatter):
    """Time of day, level, where, what. Line breaks inside a message are spelled out, so one event stays one line."""

    def __init__(self) -> None:
        super().__init__()
        self._second = _SpelledSecond("%H:%M:%S", time.localtime)

    def format(self, record: logging.LogRecord) -> str:
        """Spell one record; a traceback, if any, follows on its own lines."""
        clock = self._second.spell(record.created)
        name = record.name.removeprefix("headrace.")
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {name}  {message}"
        if (tag := _tag.get()) is not None:
            line += "" if tag.request_id in message else f" id={tag.request_id}"
            line += f" trace={tag.trace_id}" if tag.trace_id else ""
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line; what a call gives as `extra={"fields": …}` becomes fields of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._second = _SpelledSecond("%Y-%m-%dT%H:%M:%S", time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Spell one record, a traceback included."""
        when = self._second.spell(record.created)
        fields: dict[str, object] = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("headrace."),
            "message": record.getMessage(),
        }
        if (tag := _tag.get()) is not None:
            fields["request_id"] = tag.request_id
            if tag.trace_id:
                fields["trace_id"] = tag.trace_id
        fields |= vars(record).get("fields", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def tag_logs(tag: LogTag | None) -> Token[LogTag | None]:
    """Tag the lines of this task and of those that it begins; None: no longer."""
    return _tag.set(tag)


def untag_logs(token: Token[LogTag | None]) -> None:
    """Go back to the tag before `tag_logs`."""
    _tag.reset(token)


def configure_logging(level: str, stream: TextIO | None = None, *, log_format: LogFormat = "text") -> None:
    """Send log lines of `level` and above to `stream` (None: standard error). Replaces earlier configuration."""
    handler = LineHandler(stream)
    handler.setFormatter(LineFormatter() if log_format == "text" else JsonFormatter())
    handler.addFilter(Seldom())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("headrace").setLevel(level.upper())
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # the library's own switch for not walking the stack, in its how-to under "Optimization"
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
