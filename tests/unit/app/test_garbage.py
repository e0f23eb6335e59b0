from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from headrace.app.garbage import set_aside


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
