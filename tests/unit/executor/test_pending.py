"""`Deferred` holds a result or an error until it is asked."""

from __future__ import annotations

import pytest

from headrace.executor import Deferred


def test_the_work_is_done_once_and_its_result_kept() -> None:
    calls: list[int] = []
    pending = Deferred(lambda: calls.append(1) or len(calls))
    assert (pending.result(), pending.result(), calls) == (1, 1, [1])


def test_an_error_is_raised_when_the_result_is_asked_for() -> None:
    pending = Deferred(lambda: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            pending.result()


def test_nothing_is_done_before_the_result_is_asked_for() -> None:
    calls: list[int] = []
    Deferred(lambda: calls.append(1))
    assert calls == []
