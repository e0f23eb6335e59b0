from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator

import pytest
import uvloop

from headrace.app.garbage import keep_no_list_of_generators, set_aside


class Loop:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_lives_is_walked_no_more_and_what_has_died_since_is_freed() -> None:
    lives, dies = Loop(), Loop()
    dead = weakref.ref(dies)
    set_aside()
    assert gc.get_freeze_count() > 0
    assert not any(each is lives for each in gc.get_objects())
    del dies
    gc.collect()
    assert dead() is not None, "the collector does look at what was set aside"
    set_aside()
    assert dead() is None
    assert lives.me is lives


def test_a_generator_that_is_dropped_half_way_is_closed_though_the_loop_lists_none() -> None:
    listed: weakref.WeakSet[object] = weakref.WeakSet()

    async def scene() -> list[str]:
        ends: list[str] = []

        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await asyncio.sleep(0)
                ends.append("closed")

        keep_no_list_of_generators()
        generator = numbers()
        listed.add(generator)
        assert await anext(generator) == 1
        assert weakref.getweakrefcount(generator) == 1, "somebody else lists it"
        del generator
        async with asyncio.timeout(10):
            while not ends:
                await asyncio.sleep(0)
        return ends

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scene()) == ["closed"]
