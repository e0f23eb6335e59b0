"""Work beside the event loop, in a thread that does not hold up the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Do `work` in a daemon thread of its own and wait for it; it cannot be called back."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as err:
            done.set_exception(err)

    threading.Thread(target=run, name="headrace-load", daemon=True).start()
    return await asyncio.wrap_future(done)
