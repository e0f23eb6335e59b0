"""Fsync of a write-ahead log, off the path of commits: at most every INTERVAL_S, and only while there are commits.

Owns one thread, asleep while nothing is written. What is committed survives the death of the process at once, and the
death of the machine after INTERVAL_S and one fsync.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

INTERVAL_S = 0.05
_log = logging.getLogger(__name__)


class LogSync:
    """Keeps one file on the disk in step with what was written to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="headrace-sync", daemon=True)
        self._thread.start()

    def mark(self) -> None:
        """Say that the file has grown."""
        self._changed.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._changed.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._changed.wait()
            if self._stopping.is_set():
                return
            self._changed.clear()
            self._sync()
            self._stopping.wait(INTERVAL_S)

    def _sync(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as err:
            _log.warning("%s could not be synced: %s", self._path.name, err.strerror)
