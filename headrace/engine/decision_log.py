"""The decision log: all that went into the scheduler and all that it decided, on disk, bounded.

Owns: a ring of records between the engine thread and the writer's, and the files. The engine thread puts references
and goes on: no formatting, no lock of ours, no wait; a full ring drops records and says how many. The writer turns them
into lines (`line_maker`), a few records at a time, so that it never keeps the interpreter for long.
Files: PATH and up to three older ones, PATH.1 being the newest of them; together at most the limit. A disk that fails
ends the log with one warning; serving goes on.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO

import msgspec

from headrace.core.errors import ConfigError
from headrace.engine.decision_lines import FORMAT, LogLine, LostLine
from headrace.engine.line_maker import LineMaker
from headrace.engine.recording import AllAborted, Record
from headrace.kv.tiers import TierShape
from headrace.sched import SchedulerLimits

RING_RECORDS = 4096
_NUM_FILES = 4
_GATHER_S = 0.05
_CLOSE_S = 5.0
_log = logging.getLogger(__name__)


class DecisionLog:
    """Writes the records of one engine's life. `note` is the sink of a `RecordingScheduler`."""

    def __init__(
        self,
        path: Path,
        limit_bytes: int,
        *,
        num_blocks: int,
        block_size: int,
        limits: SchedulerLimits,
        version: str,
        tiers: TierShape | None = None,
    ) -> None:
        self._path = path
        self._segment_bytes = max(limit_bytes // _NUM_FILES, 1)
        self._head = LogLine(FORMAT, version, secrets.token_hex(8), 0, num_blocks, block_size, limits, tiers)
        self._lines = LineMaker(block_size)
        self._ring: SimpleQueue[Record | LostLine | None] = SimpleQueue()
        self._num_lost = 0
        self._is_closing = threading.Event()
        self._size = 0
        try:
            self._file = self._open()
        except OSError as err:
            raise ConfigError(f"engine.decision_log '{path}' cannot be written: {err}") from err
        self._thread = threading.Thread(target=self._run, name="headrace-decision-log", daemon=True)
        self._thread.start()

    def note(self, record: Record) -> None:
        """Take a record, or drop it if the ring is full."""
        if self._num_lost:
            if self._ring.qsize() >= RING_RECORDS:
                self._num_lost += 1
                return
            self._ring.put(LostLine(self._num_lost))
            self._num_lost = 0
        elif self._ring.qsize() >= RING_RECORDS:
            self._num_lost = 1
            return
        self._ring.put(record)
        if type(record) is AllAborted:
            self.close()

    def close(self) -> None:
        """Write what is there and end; waits a few seconds at most. Idempotent."""
        if not self._is_closing.is_set():
            self._is_closing.set()
            self._ring.put(None)
            self._thread.join(_CLOSE_S)

    def _open(self) -> BinaryIO:
        """Begin a file, moving older ones out of the way."""
        for number in range(_NUM_FILES - 1, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        file = self._path.open("xb")
        head = msgspec.json.encode(self._head) + b"\n"
        file.write(head)
        self._size = len(head)
        return file

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _run(self) -> None:
        try:
            self._write_all()
            self._file.close()
        except OSError as err:
            with contextlib.suppress(OSError):
                self._file.close()
            _log.warning("the decision log '%s' ends here: %s; serving goes on without it", self._path, err)
            while self._ring.get() is not None:  # nobody may fill memory
                pass

    def _write_all(self) -> None:
        """Write records as they come; when none come, what has been written is on its way to the disk."""
        encoder = msgspec.json.Encoder()
        while True:
            try:
                record = self._ring.get_nowait()
            except Empty:
                self._file.flush()
                record = self._ring.get()
                self._is_closing.wait(_GATHER_S)  # for more, so that the engine is disturbed less often
            if record is None:
                return
            line = record if isinstance(record, LostLine) else self._lines.line(record)
            text = encoder.encode(line) + b"\n"
            if self._size + len(text) > self._segment_bytes:
                self._rotate()
            self._file.write(text)
            self._size += len(text)
            time.sleep(0)  # let the engine thread have the interpreter

    def _rotate(self) -> None:
        self._file.close()
        self._head = msgspec.structs.replace(self._head, segment=self._head.segment + 1)
        self._file = self._open()
