"""Several streams as one, in order of arrival.

Owns: one task per source while more than one runs, and a queue bounded in items, so that a slow reader slows all
sources. Invariant: every source is closed on every way out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

_QUEUE_ITEMS = 64


class _Entry(NamedTuple, Generic[T]):
    """One item of a source, or its end: no items, perhaps an error."""

    source_idx: int
    items: tuple[T, ...]
    error: Exception | None = None


async def merge(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yield (source number, item). The first exception of any source ends all of them."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[_Entry[T]] = asyncio.Queue(_QUEUE_ITEMS)
    tasks = [asyncio.ensure_future(_feed(i, source, queue)) for i, source in enumerate(sources)]
    try:
        num_running = len(tasks)
        while num_running:
            entry = await queue.get()
            if entry.error is not None:
                raise entry.error
            num_running -= not entry.items
            for item in entry.items:
                yield entry.source_idx, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(i: int, source: AsyncGenerator[T, None], queue: asyncio.Queue[_Entry[T]]) -> None:
    """Move the items of one source into the queue, then its end. A cancelled feed has nobody left to tell."""
    error: Exception | None = None
    async with aclosing(source) as items:
        try:
            async for item in items:
                await queue.put(_Entry(i, (item,)))
        except Exception as err:
            error = err
    await queue.put(_Entry(i, (), error))
