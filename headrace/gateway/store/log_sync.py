"""Fsync of a write-ahead log, off the path of commits: at most every INTERVAL_S, and only while there are commits.

Owns one thread, asleep while nothing is written, and a descriptor of the log. What is committed survives the death of
the process at once, and the death of the machine after INTERVAL_S and one fsync.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from pathlib import Path

INTERVAL_S = 0.05
_log = logging.getLogger(__name__)


class LogSync:
    """Keeps one file on the disk in step with what was written to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_marked = False
        self._marks: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="headrace-sync", daemon=True)
        self._thread.start()

    def mark(self) -> None:
        """Say that the file has grown."""
        if not self._is_marked:
            self._is_marked = True
            self._marks.put(True)

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._marks.put(False)
        self._thread.join()

    def _work(self) -> None:
        descriptor = -1
        try:
            while self._marks.get() and not self._stopping.is_set():
                self._is_marked = False
                try:
                    if descriptor < 0:
                        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                    os.fdatasync(descriptor)
                except OSError as err:
                    _log.warning("%s could not be synced: %s", self._path.name, err.strerror)
                self._stopping.wait(INTERVAL_S)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
