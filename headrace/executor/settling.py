"""A thread that moves packed weights into huge pages after a start, while the engine already answers.

Owns that thread: it begins when the first requests have had their answers, takes what time the others leave, and ends
when all is moved or the engine is shut down. Used by `executor.native`. Costs nothing once it is done.
"""

from __future__ import annotations

import contextlib
import os
import threading

from headrace.executor.packed_memory import PackedMemory

_AFTER_S = 1.0  # not while a first request waits for its answer
_NICENESS = 10


class Settling:
    """Settles one memory; made and stopped by the thread that owns the executor."""

    def __init__(self, memory: PackedMemory, *, after_s: float = _AFTER_S) -> None:
        self._memory = memory
        self._after_s = after_s
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-settling", daemon=True)
        if not memory.is_settled:
            self._thread.start()

    def finish(self) -> None:
        """Wait until all is moved, without further delay."""
        self._hurry.set()
        self._join()

    def stop(self) -> None:
        """Leave off after the piece in hand. Idempotent."""
        self._stop.set()
        self.finish()

    def _join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        if hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)  # of this thread, on Linux
        self._hurry.wait(self._after_s)
        while not self._stop.is_set() and self._memory.settle_piece():
            pass
