"""One thread that carries out jobs in order, and whoever waits for them on an event loop.

Owns the thread. After each job `after_job` is told whether nothing else waits, for upkeep.
A job that nobody waits for any more is carried out all the same: what was queued takes effect.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """Carries out jobs one after the other, in a thread of its own."""

    def __init__(self, name: str, after_job: Callable[[bool], None]) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._after_job = after_job
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[], T]) -> T:
        """Carry out `work` in the thread; return its result or raise its exception."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                result = work()
            except BaseException as err:
                _tell(loop, partial(_fail, done, err))
            else:
                _tell(loop, partial(_succeed, done, result))

        self._jobs.put(job)
        return await done

    async def stop(self) -> None:
        """Carry out what is queued, then end the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._after_job(self._jobs.empty())


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:  # the loop has been closed: nobody waits any more
        return


def _succeed(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[T], err: BaseException) -> None:
    if not done.done():
        done.set_exception(err)
